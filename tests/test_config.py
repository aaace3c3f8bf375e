"""The configuration: what a file may say, what it gives, and what is said about a wrong one."""

from __future__ import annotations

import dataclasses
import os
import pickle
import re
import tempfile
from pathlib import Path
from unittest import mock

from hypothesis import example, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

import tests.properties  # noqa: F401
from ccserver.config import Address, Config, Listener, NetSettings, check
from ccserver.config.conffile import MAX_BYTES, MAX_ERRORS
from ccserver.config.keys import KNOWN, PARTS, SECTIONS
from ccserver.config.reading import MAX_WARNINGS
from ccserver.config.values import cpu_count
from ccserver.errors import ConfigError

HERE = Path(__file__).parent
FAMILY = HERE / "data" / "family.conf"
SAMPLE = HERE.parent / "etc" / "ccserver.conf"


class ConfigCase(SynchronousTestCase):
    """Reads texts and files of a temporary folder."""

    def parsed(self, *lines: str) -> Config:
        return Config.parse("\n".join(lines), "a.conf", "/srv")

    def refusal(self, *lines: str) -> str:
        return str(self.assertRaises(ConfigError, self.parsed, *lines))

    def refusals(self, *lines: str) -> list[str]:
        config, errors = check(self.written("\n".join(lines).encode()), "/srv")
        self.assertEqual(config is None, bool(errors))
        return [str(error) for error in errors]

    def written(self, data: bytes) -> str:
        handle, path = tempfile.mkstemp(suffix=".conf")
        self.addCleanup(os.unlink, path)
        with open(handle, "wb") as file:
            file.write(data)
        return path

    def ports(self, *lines: str) -> list[str]:
        return [str(address) for address in self.parsed(*lines).listen.addresses]


class SyntaxTests(ConfigCase):
    def test_keys_are_found_in_any_case_and_in_any_section(self):
        self.assertEqual(self.parsed("[Net]", "loglevel = 3").log.level, 3)

    def test_the_first_of_two_equal_keys_wins(self):
        self.assertEqual(self.parsed("LogLevel = 3", "LOGLEVEL = 4").log.level, 3)

    def test_a_line_is_split_at_its_first_equals_sign(self):
        info = "postgresql://u@h/db?connect_timeout=5"
        self.assertEqual(self.parsed(f"DBInfo = {info}").database.info, info)

    def test_blanks_around_key_and_value_do_not_count(self):
        self.assertEqual(self.parsed("LogLevel \t=\t 3 \t").log.level, 3)

    def test_lines_that_begin_with_semicolon_hash_blank_or_tab_are_comments(self):
        lines = (";LogLevel = 1", "#LogLevel = 2", " LogLevel = 3", "\tLogLevel = 4", "", "   ")
        self.assertEqual(self.parsed(*lines).log.level, 6)

    def test_a_byte_order_mark_and_crlf_make_no_difference(self):
        config = Config.load(self.written("\ufeffLogLevel = 3\r\nDaemon = 1\r".encode()))
        self.assertEqual((config.log.level, config.process.daemon), (3, True))

    def test_a_value_holds_all_that_stands_behind_the_equals_sign(self):
        self.assertEqual(self.parsed("DBInfo = a;b # c").database.info, "a;b # c")

    def test_comments_in_gbk_are_read_over(self):
        data = "#日志文件\nLogLevel = 3\n[App]\n;等级\n".encode("gbk")
        self.assertEqual(Config.load(self.written(data)).log.level, 3)

    def test_a_value_of_ours_that_is_not_utf8_is_refused(self):
        path = self.written(b"\nLog = " + "日志".encode("gbk"))
        error = self.assertRaises(ConfigError, Config.load, path)
        self.assertEqual((error.line, error.key), (2, "Log"))
        self.assertIn("not in UTF-8", str(error))

    def test_a_value_of_the_application_that_is_not_utf8_is_kept(self):
        config = Config.load(self.written(b"[MyGame]\nTitle = \xc8\xd5"))
        value = config.get_string("Title") or ""
        self.assertEqual(value.encode("utf-8", "surrogateescape"), b"\xc8\xd5")

    def test_a_line_without_equals_sign_is_refused_without_quoting_it(self):
        text = self.refusal("LogLevel = 3", "secret")
        self.assertTrue(text.startswith("a.conf:2: not a setting"), text)
        self.assertNotIn("secret", text)

    def test_a_line_without_a_key_is_refused(self):
        self.assertIn("a.conf:1: not a setting", self.refusal("= 3"))

    def test_a_carriage_return_within_a_line_is_refused(self):
        self.assertIn("a.conf:1: a carriage return", self.refusal("#x\rLogLevel = 3"))

    def test_a_nul_byte_is_refused_with_its_line(self):
        error = self.assertRaises(ConfigError, Config.load, self.written(b"#\n#\0\n"))
        self.assertEqual(error.line, 2)

    def test_a_file_in_utf16_is_refused_with_a_hint(self):
        data = "LogLevel = 3".encode("utf-16")
        self.assertIn("UTF-16", self.refused(data))

    def refused(self, data: bytes) -> str:
        return str(self.assertRaises(ConfigError, Config.load, self.written(data)))

    def test_a_file_above_one_mebibyte_is_refused(self):
        self.assertIn("too large", self.refused(b"#" * (MAX_BYTES + 1)))

    def test_a_file_of_one_mebibyte_is_read(self):
        Config.load(self.written(b"#" * MAX_BYTES))


class ListenTests(ConfigCase):
    def test_without_any_port_it_is_5678_on_all_of_ipv4(self):
        self.assertEqual(self.ports(), ["0.0.0.0:5678"])

    def test_listen_port_is_a_port_on_all_of_ipv4(self):
        self.assertEqual(self.parsed("ListenPort = 80").listen.addresses, (Address("0.0.0.0", 80),))

    def test_numbered_ports_without_a_count_all_count_in_their_numbers_order(self):
        lines = ("ListenPort10 = 3", "ListenPort9 = 2", "ListenPort255 = 4")
        self.assertEqual(self.ports(*lines), ["0.0.0.0:2", "0.0.0.0:3", "0.0.0.0:4"])

    def test_numbered_ports_beyond_the_count_are_ignored_with_a_warning(self):
        config = self.parsed("ListenPortCount = 1", "ListenPort0 = 80", "ListenPort1 = nonsense")
        self.assertEqual(config.listen.addresses, (Address("0.0.0.0", 80),))
        self.assertEqual(
            config.warnings, ("a.conf:3: ListenPort1 is ignored: ListenPortCount is 1",)
        )

    def test_a_numbered_port_below_the_count_that_is_missing_is_refused(self):
        text = self.refusal("ListenPort0 = 80", "ListenPortCount = 2")
        self.assertIn("a.conf:2: ListenPortCount = 2: ListenPort1 is missing", text)

    def test_a_numbered_port_above_255_is_refused(self):
        self.assertIn("allowed: ListenPort0 to ListenPort255", self.refusal("ListenPort256 = 80"))

    def test_listen_takes_ipv4_ipv6_asterisk_and_bare_ports(self):
        ports = self.ports("Listen = 127.0.0.1:1, [::1]:2,*:3 , 4, [::]:5")
        expected = ["127.0.0.1:1", "[::1]:2", "0.0.0.0:3", "0.0.0.0:4", "[::]:5"]
        self.assertEqual(ports, expected)

    def test_listen_port_numbered_ports_and_listen_are_united_in_this_order(self):
        ports = self.ports("Listen = 127.0.0.1:3", "ListenPort0 = 2", "ListenPort = 1")
        self.assertEqual(ports, ["0.0.0.0:1", "0.0.0.0:2", "127.0.0.1:3"])

    def test_the_same_port_twice_is_refused_naming_both_lines(self):
        text = self.refusal("ListenPort = 80", "", "ListenPort0 = 80")
        self.assertIn("a.conf:3: ListenPort0 = 80: duplicate port", text)
        self.assertIn("0.0.0.0:80 of ListenPort in line 1", text)

    def test_one_address_beside_the_wildcard_of_its_family_is_refused(self):
        for line in ("Listen = 0.0.0.0:80, 127.0.0.1:80", "Listen = [::1]:80, [::]:80"):
            self.assertIn("duplicate port", self.refusal(line))

    def test_one_address_in_two_spellings_is_refused(self):
        self.assertIn("duplicate port", self.refusal("Listen = [::1]:80, [0:0::0:1]:80"))

    def test_one_port_on_two_addresses_or_in_both_families_is_allowed(self):
        self.assertEqual(len(self.ports("Listen = 127.0.0.1:80, 127.0.0.2:80")), 2)
        self.assertEqual(len(self.ports("Listen = *:80, [::]:80")), 2)

    def test_what_is_no_address_or_port_is_refused(self):
        wrong = ["localhost:80", "1.2.3:80", "::1:80", "[::1]", "[127.0.0.1]:80", "80,", ""]
        wrong += ["0", "65536", "1.2.3.4:", ":80", "1.2.3.4:+ 80", "http://1.2.3.4:80"]
        for value in wrong:
            text = self.refusal(f"Listen = {value}")
            self.assertTrue(text.startswith("a.conf:1: Listen = "), text)
            self.assertIn("allowed: addresses and ports like 127.0.0.1:5678, [::1]:5678", text)

    def test_the_number_of_addresses_is_bounded(self):
        text = self.refusal("Listen = " + ",".join(map(str, range(1, 258))))
        self.assertIn("more than 256 addresses", text)

    def test_an_address_knows_its_family(self):
        self.assertEqual(
            [Address("::1", 1).is_ipv6, Address("127.0.0.1", 1).is_ipv6], [True, False]
        )

    def test_words_behind_an_address_say_what_its_connections_begin_with(self):
        self.assertEqual(
            self.parsed(
                "Listen = 1, [::1]:2 TLS,  3 \t tls  proxy, *:4 proxy",
                "ListenPort = 5",
                "TlsCertificate = a.pem",
                "ProxyFrom = ::1",
            ).listen.listeners,
            (
                Listener(Address("0.0.0.0", 5)),
                Listener(Address("0.0.0.0", 1)),
                Listener(Address("::1", 2), tls=True),
                Listener(Address("0.0.0.0", 3), tls=True, proxy=True),
                Listener(Address("0.0.0.0", 4), proxy=True),
            ),
        )

    def test_other_words_behind_an_address_are_refused(self):
        self.assertIn('"ssl" behind 0.0.0.0:1 is neither tls', self.refusal("Listen = 1 ssl"))
        self.assertIn("the same word twice", self.refusal("Listen = 1 proxy Proxy"))

    def test_a_proxy_listener_needs_to_know_who_the_proxies_are(self):
        text = self.refusal("Listen = 127.0.0.1:1 proxy")
        self.assertIn("nobody may tell the addresses of clients; allowed: proxy, where Proxy", text)

    def test_networks_are_addresses_and_networks(self):
        networks = self.parsed("ProxyFrom = 10.0.0.0/8,127.0.0.1 , fd00::/8").listen.proxy_from
        self.assertEqual(
            [str(each) for each in networks], ["10.0.0.0/8", "127.0.0.1/32", "fd00::/8"]
        )

    def test_what_is_no_network_is_refused(self):
        for value in ("10.0.0.1/8", "10.0.0.0/255.0.0.0", "x", "1,,2", "fe80::1%eth0", "::/129"):
            self.assertIn("no network", self.refusal(f"ProxyFrom = {value}"), value)


class TlsTests(ConfigCase):
    def test_a_tls_listener_needs_a_certificate(self):
        text = self.refusal("Listen = 127.0.0.1:1 tls")
        self.assertIn("there is no certificate; allowed: tls, where TlsCertificate names", text)

    def test_files_are_relative_to_the_base(self):
        tls = self.parsed("TlsCertificate = a.pem, /b.pem").tls
        self.assertEqual((tls.certificates, tls.keys), (("/srv/a.pem", "/b.pem"), ()))

    def test_there_are_as_many_keys_and_chains_as_certificates_or_none(self):
        for key in ("TlsKey", "TlsChain"):
            text = self.refusal("TlsCertificate = a, b", f"{key} = c")
            self.assertIn(f"{key} = c: 1 of them for 2 certificates", text)

    def test_certificates_of_clients_need_somebody_who_has_signed_them(self):
        self.assertIn("TlsClientCa says", self.refusal("TlsClientCertificates = required"))
        self.parsed("TlsClientCertificates = optional", "TlsClientCa = ca.pem")

    def test_versions_before_1_2_are_refused(self):
        self.assertIn("allowed: 1.2 or 1.3", self.refusal("TlsMinVersion = 1.1"))


class ValueTests(ConfigCase):
    def value(self, key: str, text: str) -> object:
        config = self.parsed(f"{key} = {text}")
        for part in PARTS:
            for name, setting in part.fields():
                if setting.key == key:
                    return next(
                        getattr(value, name)
                        for value in vars(config).values()
                        if isinstance(value, part)
                    )
        raise KeyError(key)

    def assert_refused(self, key: str, *texts: str) -> None:
        for text in texts:
            message = self.refusal(f"{key} = {text}")
            self.assertTrue(message.startswith(f"a.conf:1: {key} = "), message)
            self.assertIn("; allowed: ", message)

    def test_numbers_are_plain_decimal_digits(self):
        self.assertEqual(self.value("Backlog", "0010"), 10)
        self.assertEqual(self.value("Backlog", "+10"), 10)
        wrong = ["abc", "1_000", "0x10", "", "1.0", "1e3", "١٢", "1 0", "-", "9" * 5000]
        self.assert_refused("Backlog", *wrong)

    def test_bounds_are_inclusive_and_named(self):
        self.assertEqual([self.value("LogLevel", n) for n in "08"], [0, 8])
        expected = "a.conf:1: LogLevel = -1: out of bounds; allowed: 0 to 8"
        self.assertEqual(self.refusal("LogLevel = -1"), expected)
        self.assert_refused("LogLevel", "9")

    def test_every_bounded_setting_takes_its_bounds_and_nothing_beyond(self):
        bounded = [s for s in KNOWN.values() if hasattr(s.kind, "low")]
        self.assertIn(KNOWN["backlog"], bounded)
        for setting in bounded:
            for inside in (setting.kind.low, setting.kind.high):
                setting.kind.parse(str(inside), "/srv")
            for outside in (setting.kind.low - 1, setting.kind.high + 1):
                self.assertRaises(ValueError, setting.kind.parse, str(outside), "/srv")

    def test_a_number_with_a_comment_behind_it_gets_a_hint(self):
        text = self.refusal("LogLevel = 6 # notice")
        self.assertIn("comments stand on lines of their own", text)

    def test_masks_of_cpus_go_to_the_workers_in_turn_and_the_last_to_the_rest(self):
        affinity = self.value("worker_cpu_affinity", "0001  0110")
        self.assertEqual([affinity.of(slot) for slot in range(3)], [{0}, {1, 2}, {1, 2}])
        self.assertEqual(self.value("worker_cpu_affinity", "").of(0), set())

    def test_masks_of_many_cpus_may_be_long(self):
        masks = " ".join(["1" * 1024] * 256)
        self.assertEqual(len(self.value("worker_cpu_affinity", masks).sets), 256)

    @given(
        st.lists(st.sampled_from(["auto", "AUTO", "1", "010", "0", "2"]), max_size=4).map(" ".join)
    )
    def test_masks_that_are_shown_are_read_as_they_were(self, text):
        kind = KNOWN["worker_cpu_affinity"].kind
        try:
            affinity = kind.parse(text, "")
        except ValueError:
            return
        self.assertEqual(kind.parse(kind.show(affinity), ""), affinity)

    def test_what_is_no_mask_is_refused(self):
        wrong = ["2", "0x1", "1,1", "1 auto", "auto 1 1", "0", "auto 0"]
        self.assert_refused("worker_cpu_affinity", *wrong)

    def test_durations_take_units(self):
        taken = {"30": 30.0, "30s": 30.0, "500ms": 0.5, "1.5s": 1.5, "5m": 300.0, "1H": 3600.0}
        for text, seconds in taken.items():
            self.assertEqual(self.value("ShutdownTimeout", text), seconds)
        self.assert_refused(
            "ShutdownTimeout", "", "s", "30 s", "1d", "1e3", ".5", "25h", "nan", "-1s"
        )

    def test_whole_seconds_take_units_but_no_fractions(self):
        self.assertEqual(self.value("Sock_MaxWaitTime", "2m"), 120)
        self.assertEqual(self.value("Sock_MaxWaitTime", "7000ms"), 7)
        self.assert_refused("Sock_MaxWaitTime", "7.5", "7500ms", "-1")

    def test_the_flood_interval_is_written_in_milliseconds_and_kept_in_seconds(self):
        self.assertEqual(self.value("Sock_FloodTimeInterval", "100"), 0.1)
        self.assertEqual(self.value("Sock_FloodTimeInterval", "2s"), 2.0)
        self.assertEqual(self.value("Sock_FloodTimeInterval", "3600000"), 3600.0)
        self.assert_refused("Sock_FloodTimeInterval", "3600001")

    def test_a_heartbeat_interval_below_5_counts_as_5(self):
        self.assertEqual([self.value("Sock_MaxWaitTime", n) for n in "0456"], [5, 5, 5, 6])

    def test_sizes_take_units(self):
        taken = {"8192": 8192, "16KiB": 16384, "1mib": 1 << 20, "4GiB": 4 << 30}
        for text, size in taken.items():
            self.assertEqual(self.value("HashMemory", text), size)
        self.assert_refused("HashMemory", "16k", "16KB", "1.5MiB", "7KiB", "5GiB", "MiB", "16 KiB")

    def test_a_send_queue_is_two_sizes_and_seconds(self):
        self.assertEqual(self.value("SendQueueLimit", "1MiB 64KiB 500ms"), (1 << 20, 1 << 16, 0.5))
        self.assertEqual(self.value("SendQueueLimit", "0 1MiB 30"), (0, 1 << 20, 30.0))
        self.assertEqual(self.value("SendQueueLimit", "1MiB 0 0"), (1 << 20, 0, 0.0))
        wrong = ["", "4MiB", "4MiB 1MiB", "4MiB 1MiB 30s 1", "1MiB 4MiB 30", "1000 500 1", "a b c"]
        self.assert_refused("SendQueueLimit", *wrong, "4MiB 1MiB -1", "-1 0 0", "2GiB 0 0")

    def test_switches_take_the_usual_words(self):
        for text in ("1", "on", "Yes", "TRUE"):
            self.assertIs(self.value("Daemon", text), True)
        for text in ("0", "off", "No", "FALSE"):
            self.assertIs(self.value("Daemon", text), False)
        self.assert_refused("Daemon", "2", "", "enable")

    def test_words_are_taken_in_any_case(self):
        self.assertEqual(self.value("OnBadChecksum", "Close"), "close")
        self.assert_refused("OnBadChecksum", "ignore", "")

    def test_auto_workers_are_as_many_as_cpus_this_process_may_use(self):
        with mock.patch("os.sched_getaffinity", return_value={0, 1, 2}, create=True):
            self.assertEqual(self.value("WorkerProcesses", "Auto"), 3)
            self.assertEqual(self.parsed().process.workers, 3)

    def test_no_workers_at_all_are_allowed(self):
        self.assertEqual(self.value("WorkerProcesses", "0"), 0)

    def test_a_bad_number_of_workers_is_told_what_is_allowed(self):
        expected = "a.conf:1: WorkerProcesses = abc: not a number; allowed: auto or 0 to 256"
        self.assertEqual(self.refusal("WorkerProcesses = abc"), expected)

    def test_relative_paths_begin_at_the_base(self):
        self.assertEqual(self.value("Log", "logs/../x.log"), "/srv/x.log")
        self.assertEqual(self.value("Log", "/var/log/x.log"), "/var/log/x.log")
        self.assertEqual(self.value("AppPath", ".:lib:/opt"), ("/srv", "/srv/lib", "/opt"))
        self.assertEqual(self.parsed().app.path, ("/srv",))
        self.assert_refused("Log", "")
        self.assert_refused("AppPath", "", "a::b", "a:")

    def test_the_base_is_the_current_folder_unless_given(self):
        self.assertEqual(Config.parse("").log.file, os.path.join(os.getcwd(), "error.log"))

    def test_an_app_is_a_module_and_an_attribute(self):
        self.assertEqual(self.value("App", "my.game_1:app"), "my.game_1:app")
        self.assert_refused("App", "game", "game:", ":app", "a..b:c", "a:b:c", "a-b:c", "a/b.py:c")

    def test_control_characters_in_a_value_are_refused(self):
        self.assert_refused("Log", "a\x1b[2Jb", "a\u2028b")

    def test_a_value_too_long_to_make_sense_is_refused_without_quoting_it_whole(self):
        text = self.refusal("Log = " + "x" * 5000)
        self.assertIn("longer than 4096 characters", text)
        self.assertLess(len(text), 300)

    def test_too_little_hash_memory_for_the_lanes_is_refused(self):
        text = self.refusal("HashParallelism = 4", "HashMemory = 16KiB")
        self.assertIn("a.conf:2: HashMemory = 16KiB: 16384 bytes are too few for 4 lanes", text)


class ErrorTests(ConfigCase):
    def test_an_unknown_key_in_a_section_of_ours_names_line_section_and_nearest_key(self):
        text = self.refusal("[Log]", "LogLevl = 3")
        expected = 'a.conf:2: unknown key "LogLevl" in [Log]; did you mean "LogLevel"?'
        self.assertEqual(text, expected)

    def test_a_section_very_near_to_one_of_ours_is_named_with_that(self):
        for name, near in (("Sockets", "Socket"), ("Sokcet", "Socket"), ("logs", "Log")):
            self.assertEqual(
                self.refusals("", f"[{name}]", "Mine = 1")[0].partition(":")[2],
                f"2: unknown section [{name}]; did you mean [{near}]? One of the application's "
                "needs a name less like it",
            )

    def test_a_section_of_the_application_need_not_be_unlike_all_of_ours(self):
        for name in ("MyGame", "Tiles", "Maps", "Process", "Network"):
            self.assertEqual(self.parsed(f"[{name}]", "Mine = 1").warnings, ())

    def test_a_wrong_listen_is_told_once(self):
        for value in ("1.2.3.4", "80, x", "80 ssl"):
            (text,) = self.refusals("ListenPort = 5678", f"Listen = {value}")
            self.assertIn(f":2: Listen = {value}: ", text)

    def test_sections_are_known_in_any_case(self):
        self.assertIn("in [Log]", self.refusal("[log]", "LogLevl = 3"))

    def test_an_unknown_key_before_any_section_is_refused(self):
        text = self.refusal("zzz = 3")
        self.assertIn('a.conf:1: unknown key "zzz" before any section', text)

    def test_an_unknown_key_that_is_near_to_none_is_told_the_sections_keys(self):
        self.assertIn("; allowed: Log, LogLevel", self.refusal("[Log]", "zzz = 3"))

    def test_an_error_tells_path_line_and_key(self):
        error = self.assertRaises(ConfigError, self.parsed, "", "loglevel = x")
        self.assertEqual((error.path, error.line, error.key), ("a.conf", 2, "LogLevel"))
        self.assertEqual(error.reason, "config")

    def test_an_error_survives_pickling(self):
        error = pickle.loads(pickle.dumps(ConfigError("text", "a.conf", 2, "Log")))  # noqa: S301
        self.assertEqual((str(error), error.line), ("a.conf:2: text", 2))

    def test_check_tells_all_errors_in_the_order_of_lines(self):
        errors = self.refusals("LogLevel = x", "[Log]", "what = 1", "Backlog = 0", "nothing")
        self.assertEqual([re.findall(r":(\d+): ", e)[0] for e in errors], ["1", "3", "4", "5"])

    def test_load_raises_the_first_error_that_check_tells(self):
        path = self.written(b"Backlog = 0\nLogLevel = x\n")
        error = self.assertRaises(ConfigError, Config.load, path)
        self.assertEqual(str(error), str(check(path)[1][0]))

    def test_check_of_a_good_file_gives_what_load_gives(self):
        self.assertEqual(check(str(FAMILY)), (Config.load(FAMILY), []))

    def test_the_number_of_errors_is_bounded(self):
        self.assertEqual(len(self.refusals("[Log]", *["nothing"] * 1000)), MAX_ERRORS)

    def test_a_missing_file_and_a_folder_are_refused_by_their_name(self):
        folder = tempfile.mkdtemp()
        self.addCleanup(os.rmdir, folder)
        for path, why in ((folder + "/x.conf", "No such file"), (folder, "Is a directory")):
            error = self.assertRaises(ConfigError, Config.load, path)
            self.assertEqual((error.path, error.line, error.key), (path, None, None))
            self.assertIn(why, str(error))

    def test_an_unreadable_file_is_refused(self):
        denied = PermissionError(13, "Permission denied")
        with mock.patch("builtins.open", side_effect=denied):
            config, errors = check("a.conf")
        self.assertIsNone(config)
        self.assertEqual(
            [str(e) for e in errors],
            ["a.conf: cannot read the configuration: Permission denied"],
        )

    def test_a_file_that_any_user_may_write_is_refused(self):
        path = self.written(b"LogLevel = 3")
        os.chmod(path, 0o646)
        error = self.assertRaises(ConfigError, Config.load, path)
        self.assertEqual(error.path, path)
        self.assertIn("mode 0646: any user may write it", str(error))
        os.chmod(path, 0o664)
        self.assertEqual(Config.load(path).log.level, 3)

    def test_what_is_no_regular_file_has_no_mode_that_matters(self):
        self.assertEqual(Config.load("/dev/null").net, NetSettings())

    def test_a_name_that_no_file_can_have_is_refused(self):
        self.assertIn("cannot read", str(self.assertRaises(ConfigError, Config.load, "a\0b")))

    def test_an_error_never_quotes_a_password(self):
        text = self.refusal("DBInfo = h;1;u;hunter2\x07;db")
        self.assertIn("DBInfo = ***", text)
        self.assertNotIn("hunter2", text)


class WarningTests(ConfigCase):
    def assert_warned(self, expected: str, *lines: str) -> None:
        self.assertEqual(self.parsed(*lines).warnings, (expected,))

    def test_keys_of_the_applications_own_sections_are_fine(self):
        self.assertEqual(self.parsed("[MyGame]", "Map = desert", "Rooms = 3").warnings, ())

    def test_an_applications_key_very_near_to_one_of_ours_is_told(self):
        expected = 'a.conf:2: "LogLevl" in [MyGame]: did you mean "LogLevel"?'
        self.assert_warned(expected, "[MyGame]", "LogLevl = 3")

    def test_a_short_key_of_the_application_is_not_taken_for_a_slip(self):
        self.assertEqual(self.parsed("[MyGame]", "Apps = 3").warnings, ())

    def test_the_number_of_warnings_is_bounded(self):
        self.assertEqual(len(self.parsed(*["LogLevel = 3"] * 1000).warnings), MAX_WARNINGS)

    def test_a_warning_is_one_line_whatever_the_files_name(self):
        (warning,) = Config.parse(" Log = a", "a\nb.conf").warnings
        self.assertTrue(warning.startswith("a\\nb.conf:1: Log is ignored"), warning)

    def test_a_key_given_twice_is_told(self):
        expected = "a.conf:3: LogLevel is given again: the one in line 1 counts"
        self.assert_warned(expected, "LogLevel = 3", "", "loglevel = 4")

    def test_a_key_of_ours_in_an_applications_section_is_told(self):
        expected = "a.conf:2: Log in [MyGame] is ccserver's key, not the app's own"
        self.assert_warned(expected, "[MyGame]", "log = game.log")

    def test_an_indented_key_of_ours_is_told(self):
        expected = "a.conf:1: LogLevel is ignored: an indented line is a comment"
        self.assert_warned(expected, "  LogLevel = 3")

    def test_a_database_that_is_a_bare_address_is_told(self):
        expected = (
            "a.conf:1: DBInfo names no database; allowed: a URL or host;port;user;password;database"
        )
        self.assert_warned(expected, "DBInfo = 127.0.0.1")

    def test_a_path_with_what_looks_like_a_comment_is_told(self):
        expected = "a.conf:1: Log: what looks like a comment is part of the value"
        self.assert_warned(expected, "Log = a.log # here")

    def test_masks_should_be_as_many_as_workers(self):
        for workers, masks, why in (
            (1, "1 10", "2 masks for 1 workers: the rest is nobody's"),
            (3, "1 10", "2 masks for 3 workers: the last is for the rest"),
        ):
            expected = f"a.conf:2: worker_cpu_affinity: {why}"
            lines = f"WorkerProcesses = {workers}", f"worker_cpu_affinity = {masks}"
            self.assert_warned(expected, *lines)
        for fitting in ("1", "1 10 100", "auto", "auto 1"):
            text = "WorkerProcesses = 3", f"worker_cpu_affinity = {fitting}"
            self.assertEqual(self.parsed(*text).warnings, ())

    def test_a_group_needs_a_user(self):
        self.parsed("User = a", "Group = b")
        expected = "a.conf:1: Group = b: there is no User; allowed: a group, beside a User"
        self.assertEqual(self.refusal("Group = b"), expected)

    def test_cpus_and_policy_of_no_workers_are_ignored(self):
        for text in ("worker_cpu_affinity = 1", "worker_cpu_affinity = auto"):
            expected = "a.conf:2: worker_cpu_affinity is ignored: there are no workers"
            self.assert_warned(expected, "WorkerProcesses = 0", text)
        expected = "a.conf:2: WorkerScheduling is ignored: there are no workers"
        self.assert_warned(expected, "WorkerProcesses = 0", "WorkerScheduling = batch")
        for text in (
            "worker_cpu_affinity =",
            "WorkerScheduling = Auto",
            "WorkerScheduling = normal",
        ):
            self.assertEqual(self.parsed("WorkerProcesses = 0", text).warnings, ())


class ConfigTests(ConfigCase):
    def test_a_worker_needs_a_descriptor_for_each_connection_and_address_and_some_to_spare(self):
        config = self.parsed("worker_connections = 1896", "ListenPort0 = 1", "ListenPort1 = 2")
        self.assertEqual(config.descriptors, 2002)
        self.assertIsNone(config.few_descriptors(2002))
        text = config.few_descriptors(2001) or ""
        self.assertIn("worker_connections = 1896 needs 2002 file descriptors", text)
        self.assertIn("the hard limit is 2001: raise that", text)

    def test_a_refusal_names_the_line_if_there_is_one(self):
        config = self.parsed("", "log = a")
        self.assertEqual(str(config.refusal("Log", "no")), "a.conf:2: no")
        self.assertEqual(str(config.refusal("App", "no")), "a.conf: no")

    def test_the_parts_are_frozen(self):
        config = self.parsed()
        with self.assertRaises(dataclasses.FrozenInstanceError):
            config.log.level = 3
        with self.assertRaises(dataclasses.FrozenInstanceError):
            config.log = config.log

    def test_a_part_can_be_made_without_a_file(self):
        self.assertEqual(NetSettings(lane_packets=1).worker_connections, 2048)

    def test_the_text_that_was_read_gives_an_equal_config(self):
        config = Config.load(FAMILY, "/srv")
        again = Config.parse(config.text, path=config.path, base=config.base)
        self.assertEqual(again, config)
        self.assertEqual(config.text.encode("utf-8", "surrogateescape"), FAMILY.read_bytes())

    def test_a_config_can_be_hashed(self):
        self.assertEqual(len({self.parsed(), self.parsed(), self.parsed("LogLevel = 1")}), 2)

    def test_any_key_can_be_asked_for(self):
        config = self.parsed("LogLevel = 3", "[MyGame]", "Map = desert", "map = sea", "Rooms = -3")
        self.assertEqual(config.get_string("MAP"), "desert")
        self.assertEqual(config.get_string("nothing"), None)
        self.assertEqual(config.get_string("nothing", "x"), "x")
        self.assertEqual(config.get_int("rooms"), -3)
        self.assertEqual(config.get_int("LogLevel"), 3)
        self.assertEqual((config.get_int("nothing"), config.get_int("nothing", 7)), (0, 7))

    def test_asking_for_a_number_that_is_none_names_the_line(self):
        config = self.parsed("[MyGame]", "Rooms = many")
        error = self.assertRaises(ConfigError, config.get_int, "rooms")
        self.assertEqual(str(error), "a.conf:2: Rooms = many: not a number")
        self.assertEqual((error.path, error.line, error.key), ("a.conf", 2, "Rooms"))

    def test_what_happens_once_at_the_start_needs_a_restart(self):
        fixed = [setting.key for setting in KNOWN.values() if not setting.reloadable]
        self.assertEqual(fixed, ["Daemon", "User", "Group", "Control"])

    def test_every_setting_has_a_section_a_doc_and_a_default_that_it_takes(self):
        for setting in KNOWN.values():
            self.assertIn(setting.section, SECTIONS)
            self.assertTrue(setting.doc)
            if setting.default is not None:
                setting.kind.parse(setting.default, "/srv")


class DescriptionTests(ConfigCase):
    def described(self, *lines: str) -> dict[str, tuple[str, bool]]:
        return {key: (value, usual) for _, key, value, usual, _ in self.parsed(*lines).describe()}

    def test_settings_in_force_are_told_by_section_and_as_they_are_written(self):
        told = self.described("ListenPort0 = 80", "ShutdownTimeout = 500ms", "HashMemory = 1024KiB")
        self.assertEqual(told["Listen"], ("0.0.0.0:80", False))
        self.assertEqual(told["ShutdownTimeout"], ("0.5", False))
        self.assertEqual(told["HashMemory"], ("1MiB", False))
        self.assertEqual(told["Sock_FloodTimeInterval"], ("100", True))
        self.assertEqual(told["AppPath"], ("/srv", True))
        self.assertEqual(told["WorkerProcesses"], (str(min(cpu_count(), 256)), True))
        sections = [line.section for line in self.parsed().describe()]
        self.assertEqual(sections, sorted(sections, key=SECTIONS.index))

    def test_what_is_told_gives_the_same_settings_when_it_is_read(self):
        config = Config.load(FAMILY, "/srv")
        again = self.parsed(*(f"{key} = {value}" for _, key, value, *_ in config.describe()))
        self.assertEqual(again.describe(), config.describe())
        self.assertEqual(again.net, config.net)

    def test_passwords_are_masked(self):
        masked = {
            "postgresql://ann:hunter2@h:5432/db": "postgresql://ann:***@h:5432/db",
            "postgresql://ann:hun@ter2@h/db": "postgresql://ann:***@h/db",
            "postgresql://:hunter2@h/db": "postgresql://:***@h/db",
            "postgresql://h/db?user=u&password=hunter2&x=1": (
                "postgresql://h/db?user=u&password=***&x=1"
            ),
            "h;5432;ann;hunter2;db": "h;5432;ann;***;db",
            "h;5432;ann;hun;ter2;db": "h;5432;ann;***;db",
            "h;5432;ann;hunter2": "h;***",
            "sqlite:///accounts.db": "sqlite:///accounts.db",
            "127.0.0.1": "127.0.0.1",
            "": "",
        }
        for info, shown in masked.items():
            self.assertEqual(self.described(f"DBInfo = {info}")["DBInfo"][0], shown)

    def test_the_repr_of_a_config_holds_no_password(self):
        config = self.parsed("DBInfo = h;5432;ann;hunter2;db")
        self.assertNotIn("hunter2", repr(config) + repr(config.database))


class FamilyFileTests(ConfigCase):
    def test_a_file_of_the_family_loads_unchanged_without_a_warning(self):
        config = Config.load(FAMILY, "/srv")
        self.assertEqual(config.warnings, ())
        self.assertEqual(
            config.listen.addresses, (Address("0.0.0.0", 15678), Address("0.0.0.0", 15679))
        )
        self.assertEqual((config.log.file, config.log.level), ("/srv/error.log", 8))
        process = config.process
        self.assertEqual((process.workers, process.daemon, process.threads), (2, False, 8))
        net = config.net
        self.assertEqual((net.worker_connections, net.recycle_wait), (2048, 150))
        self.assertEqual((net.heartbeat, net.heartbeat_interval), (True, 20))
        self.assertFalse(net.heartbeat_kick)
        security = config.security
        self.assertEqual(
            (security.flood_kick, security.flood_interval, security.flood_count), (True, 0.1, 10)
        )
        self.assertEqual(config.database.info, "")

    def test_the_copy_still_has_what_makes_it_a_real_file(self):
        data = FAMILY.read_bytes()
        self.assertTrue(data.startswith(b"\xef\xbb\xbf#"))
        self.assertIn("日志文件\r\n".encode(), data)


class SampleTests(ConfigCase):
    def test_the_sample_gives_the_defaults(self):
        sample, usual = Config.load(SAMPLE, "/srv"), Config.defaults("/srv")
        same = {"path": "", "text": "", "_entries": {}}
        self.assertEqual(dataclasses.replace(sample, **same), dataclasses.replace(usual, **same))

    def test_the_sample_is_free_of_warnings(self):
        self.assertEqual(Config.load(SAMPLE).warnings, ())

    def test_every_key_stands_in_the_sample_in_its_section(self):
        found, section = set(), ""
        for line in SAMPLE.read_text().splitlines():
            if line.startswith("["):
                section = line[1:-1]
            if match := re.match(r"#?(\w+) =", line):
                found.add((section, match[1]))
        known = {(setting.section, setting.key) for setting in KNOWN.values()}
        self.assertEqual(known - found, set())

    def test_every_example_in_the_sample_is_good(self):
        text = re.sub(r"(?m)^#(\w+ =)", r"\1", SAMPLE.read_text())
        self.assertEqual(len(self.parsed(text).listen.addresses), 5)


def _lines() -> st.SearchStrategy[str]:
    keys = st.sampled_from([setting.key for setting in KNOWN.values()]) | st.text(max_size=12)
    words = st.sampled_from(
        [
            "0",
            "1",
            "30s",
            "auto",
            "*:80",
            "[::1]:80",
            "a:b",
            "9" * 500,
            "1MiB",
            "auto 101",
            "0001 0010",
        ]
    )
    setting = st.tuples(keys, words | st.text(max_size=30)).map(" = ".join)
    section = st.sampled_from(SECTIONS).map("[{}]".format)
    line = setting | section | st.text(max_size=30)
    return st.lists(line, max_size=12).map("\n".join)


class AnyInputTests(ConfigCase):
    """Whatever a file holds: settings or L{ConfigError}s of one line each."""

    def holds(self, text: str) -> None:
        try:
            config = Config.parse(text, "a.conf", "/srv")
        except ConfigError as error:
            self.assertEqual(len(str(error).splitlines()), 1)
            self.assertTrue(str(error).isprintable())
        else:
            self.assertEqual(Config.parse(config.text, "a.conf", "/srv"), config)
            for line in (*config.warnings, *(told.value for told in config.describe())):
                self.assertTrue(line.isprintable())

    @settings(deadline=None)
    @given(_lines())
    @example("Listen = [fe80::1%\x85]:80")
    @example("ShutdownTimeout = " + "9" * 5000)
    @example("[\u2028]\n\u212a = 1")
    def test_any_lines_give_a_config_or_errors(self, text):
        self.holds(text)

    @settings(deadline=None)
    @given(st.text(st.characters(codec=None), max_size=200))
    def test_any_text_gives_a_config_or_errors(self, text):
        self.holds(text)

    @settings(deadline=None)
    @given(st.binary(max_size=200) | _lines().map(lambda s: s.encode("utf-8", "surrogatepass")))
    @example(b"\xef\xbb\xbf\xef\xbb\xbf#")
    def test_any_bytes_give_a_config_or_errors(self, data):
        with mock.patch("builtins.open", mock.mock_open(read_data=data)):
            config, errors = check("a.conf", "/srv")
        self.assertEqual(config is None, bool(errors))
        self.holds(data.decode("utf-8", "surrogateescape"))
