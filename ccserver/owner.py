"""The owner: the user and the group that a server started by root becomes."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from dataclasses import dataclass

from ccserver.errors import UnknownOwner


@dataclass(frozen=True)
class Owner:
    """Who the server is once its ports are open.

    @ivar uid: the user.
    @ivar gid: the group.
    """

    uid: int
    gid: int

    @classmethod
    def named(cls, user: str, group: str) -> Owner:
        """The user and the group of these names, or numbers; without a group, the user's.

        @raise UnknownOwner: there is no such user, or no such group.
        """
        known = _user(user)
        return cls(known.pw_uid, _group(group) if group else known.pw_gid)

    @classmethod
    def with_ids(cls, uid: int | str, gid: int | str | None) -> Owner:
        """The user and the group of these numbers; without a group, the user's.

        @raise UnknownOwner: there is no such user.
        """
        known = _user(str(uid))
        return cls(known.pw_uid, known.pw_gid if gid is None else int(gid))

    def own_file(self, path: str) -> None:
        """Make a file that root has opened the owner's, so that he can open it anew.

        Only a regular file that has no other name and is no symbolic link: where others may
        write in its folder, it could lead to any file of the system.
        """
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return
        try:
            about = os.fstat(fd)
            if stat.S_ISREG(about.st_mode) and about.st_nlink == 1:
                os.fchown(fd, self.uid, self.gid)
        except OSError:
            pass  # a file system without owners, or one that does not let root have its way
        finally:
            os.close(fd)


def _user(name: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwuid(int(name)) if name.isdecimal() else pwd.getpwnam(name)
    except (KeyError, OverflowError):
        raise UnknownOwner("User", name) from None


def _group(name: str) -> int:
    try:
        return (grp.getgrgid(int(name)) if name.isdecimal() else grp.getgrnam(name)).gr_gid
    except (KeyError, OverflowError):
        raise UnknownOwner("Group", name) from None
