"""App: which functions can be handlers and hooks, and what their annotations say."""

from __future__ import annotations

import functools
import types
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from ccserver import App, AppError, BadBody, Message, Session, field


class Point(Message):
    x: int = field.i16()


class Service:
    """Handlers as methods."""

    def plain(self, session: Session, request: Point) -> bytes:
        return b""

    async def waiting(self, session: Session, request: bytes) -> None:
        pass

    @classmethod
    def of_class(cls, session: Session, request: Point) -> bytes:
        return b""

    @staticmethod
    def static(session: Session, request: Point) -> bytes:
        return b""


class Callable:
    """A handler as an object."""

    def __call__(self, session: Session, request: Point) -> bytes:
        return b""


class AsyncCallable:
    async def __call__(self, session: Session, request: Point) -> bytes:
        return b""


def with_more(extra: int, session: Session, request: Point) -> bytes:
    return b""


def decorated(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


class AppCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.app = App()

    def registered(self, function: Any, code: int = 5, name: str | None = None) -> Any:
        self.assertIs(self.app.message(code, name)(function), function)
        return self.app.handlers[code]

    def refusal(self, function: Any, code: Any = 5) -> str:
        text = str(self.assertRaises(AppError, self.app.message(code), function))
        self.assertEqual(self.app.handlers, {})
        return text

    def compiled(self, source: str, **names: Any) -> Any:
        """The C{handler} of a module without C{from __future__ import annotations}."""
        module = types.ModuleType("compiled")
        vars(module).update(names, Point=Point, Session=Session)
        exec(compile(source, "compiled.py", "exec", dont_inherit=True), vars(module))
        return vars(module)["handler"]


class AnnotationTests(AppCase):
    def test_bytes_are_handed_over_as_they_are(self):
        def handler(session: Session, request: bytes) -> bytes: ...

        handler = self.registered(handler)
        self.assertIs(handler.request, bytes)
        self.assertIsNone(handler.decode)

    def test_a_message_is_decoded(self):
        def handler(session: Session, request: Point) -> bytes: ...

        handler = self.registered(handler)
        self.assertIs(handler.request, Point)
        self.assertEqual(handler.decode(b"\0\x07"), Point(x=7))

    def test_none_must_be_empty(self):
        def handler(session: Session, request: None) -> bytes: ...

        handler = self.registered(handler)
        self.assertIs(handler.request, types.NoneType)
        self.assertIsNone(handler.decode(b""))
        self.assertRaises(BadBody, handler.decode, b"x")

    def test_annotations_that_are_no_text_do_as_well(self):
        for annotation, request in (("Point", Point), ("bytes", bytes), ("None", types.NoneType)):
            self.app = App()
            source = f"def handler(session: Session, request: {annotation}) -> bytes: ..."
            self.assertIs(self.registered(self.compiled(source)).request, request)

    def test_an_annotation_in_quotes_does_as_well(self):
        source = "def handler(session: 'Session', request: 'Point') -> 'bytes': ..."
        handler = self.registered(self.compiled(source))
        self.assertIs(handler.request, Point)
        self.assertIs(handler.reply, bytes)

    def test_the_sessions_annotation_need_not_exist(self):
        source = "def handler(session: 'Unknown', request: Point): ..."
        self.assertIs(self.registered(self.compiled(source)).request, Point)

    def test_a_class_that_the_function_uses_is_found_where_it_was_defined(self):
        class Local(Message):
            y: int = field.u8()

        def handler(session: Session, request: Local) -> Local:
            return Local(y=request.y)

        self.assertIs(self.registered(handler).request, Local)

    def test_the_replys_annotation_is_kept(self):
        def handler(session: Session, request: None) -> Point: ...

        def optional(session: Session, request: None) -> Point | None: ...

        def without(session: Session, request: None): ...

        self.assertIs(self.registered(handler, 1).reply, Point)
        self.assertEqual(self.registered(optional, 2).reply, Point | None)
        self.assertIsNone(self.registered(without, 3).reply)

    def test_names_of_the_parameters_are_free(self):
        def handler(s: Session, whatever: Point) -> None: ...

        self.assertIs(self.registered(handler).request, Point)

    def test_without_an_annotation_it_is_refused(self):
        def handler(session, request): ...

        self.assertIn("annotate request", self.refusal(handler))

    def test_anything_else_is_refused(self):
        for annotation in ("int", "str", "list[bytes]", "bytes | None", "Session", "42"):
            source = f"def handler(session, request: {annotation}): ..."
            said = self.refusal(self.compiled(source))
            self.assertIn("neither bytes nor a Message nor None", said)

    def test_an_annotation_that_means_nothing_is_refused(self):
        for annotation in ("Unknown", "1 +", "Point.nothing"):
            source = f"def handler(session, request: {annotation!r}): ..."
            said = self.refusal(self.compiled(source))
            self.assertIn("means nothing", said)
            self.assertIn("handler handler of message code 5", said)


class FunctionTests(AppCase):
    """What can be called with a session and a request can be a handler."""

    def test_a_def_runs_in_a_thread_and_an_async_def_does_not(self):
        def handler(session: Session, request: None) -> None: ...

        async def waiting(session: Session, request: None) -> None: ...

        self.assertTrue(self.registered(handler, 1).in_thread)
        self.assertFalse(self.registered(waiting, 2).in_thread)

    def test_methods(self):
        plain = self.app.message(1)(Service().plain)
        self.assertEqual(plain(None, None), b"")
        self.assertIs(self.app.handlers[1].request, Point)
        self.assertEqual(self.app.handlers[1].name, "plain")
        self.app.message(2)(Service().waiting)
        self.assertFalse(self.app.handlers[2].in_thread)

    def test_class_and_static_methods(self):
        self.app.message(1)(Service.of_class)
        self.app.message(2)(Service.static)
        self.assertIs(self.app.handlers[1].request, Point)
        self.assertIs(self.app.handlers[2].request, Point)

    def test_partials(self):
        handler = self.registered(functools.partial(with_more, 1))
        self.assertIs(handler.request, Point)
        self.assertTrue(handler.in_thread)

    def test_partials_of_partials_and_methods(self):
        inner = functools.partial(with_more, 1)
        self.assertIs(self.registered(functools.partial(inner), 1).request, Point)
        self.assertIs(self.registered(functools.partial(Service().plain), 2).request, Point)

    def test_partials_of_async_functions_run_on_the_reactor(self):
        handler = self.registered(functools.partial(Service().waiting))
        self.assertFalse(handler.in_thread)

    def test_callable_objects(self):
        handler = self.registered(Callable())
        self.assertIs(handler.request, Point)
        self.assertEqual(handler.name, "Callable")
        self.assertTrue(handler.in_thread)

    def test_callable_objects_whose_call_is_async_run_on_the_reactor(self):
        self.assertFalse(self.registered(AsyncCallable()).in_thread)

    def test_decorated_functions_are_looked_through(self):
        @decorated
        def handler(session: Session, request: Point) -> bytes: ...

        self.assertIs(self.registered(handler).request, Point)

    def test_further_parameters_with_a_default_are_allowed(self):
        def handler(session: Session, request: Point, more: int = 5) -> None: ...

        self.assertIs(self.registered(handler).request, Point)

    def test_what_does_not_take_two_arguments_is_refused(self):
        def none(): ...

        def one(session): ...

        def three(session, request: bytes, more): ...

        def keyword(session, *, request: bytes): ...

        for function in (none, one, three, keyword):
            self.assertIn("must take a session and a request", self.refusal(function))

    def test_what_takes_anything_says_nothing_of_its_request_and_is_refused(self):
        def anything(*args: bytes) -> None: ...

        self.assertIn("must take a session and a request", self.refusal(anything))

    def test_what_cannot_be_called_is_refused(self):
        self.refusal(5)

    def test_builtins_are_refused(self):
        self.refusal(print)
        self.refusal(max)


class CodeTests(AppCase):
    def handler(self, session: Session, request: None) -> None: ...

    def test_codes_are_16_bits(self):
        for code in (0, 1, 0xFFFF):
            self.app.message(code)(self.handler)
        self.assertEqual(sorted(self.app.handlers), [0, 1, 0xFFFF])

    def test_others_are_refused(self):
        for code in (-1, 0x10000, "5", 5.0, None):
            self.assertIn("0 to 65535", self.refusal(self.handler, code))

    def test_two_handlers_for_a_code_are_refused_and_both_named(self):
        def first(session: Session, request: None) -> None: ...

        def second(session: Session, request: None) -> None: ...

        self.app.message(5)(first)
        said = str(self.assertRaises(AppError, self.app.message(5), second))
        for part in ("5", "first", "second"):
            self.assertIn(part, said)
        self.assertIs(self.app.handlers[5].function, first)

    def test_a_function_may_handle_several_codes(self):
        self.app.message(1)(self.handler)
        self.app.message(2)(self.handler)
        self.assertEqual(len(self.app.handlers), 2)

    def test_a_message_may_have_another_name_than_its_function(self):
        self.assertEqual(self.app.message(1, "ping")(self.handler), self.handler)
        self.assertEqual(self.app.handlers[1].name, "ping")


class HookTests(AppCase):
    def test_hooks_are_kept_in_their_order_and_given_back(self):
        for register, hooks in (
            (self.app.on_worker_start, self.app.worker_start),
            (self.app.on_worker_stop, self.app.worker_stop),
            (self.app.on_connection_made, self.app.connection_made),
            (self.app.on_connection_lost, self.app.connection_lost),
            (self.app.on_handover, self.app.connection_handover),
            (self.app.on_adopt, self.app.connection_adopt),
        ):
            self.assertIs(register(print), print)
            register(max)
            self.assertEqual(hooks, [print, max])

    def test_applications_share_nothing(self):
        self.app.state["x"] = 1
        self.app.on_worker_start(print)
        other = App()
        self.assertEqual((other.state, other.handlers, other.worker_start), ({}, {}, []))
