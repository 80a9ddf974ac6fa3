"""Configurations of ser2net and conserver that become ours, and what is said about the rest."""

import pathlib
import tomllib
from typing import Any

import pytest

from asyncrevoke.console.cli import main
from asyncrevoke.console.share import read_config

Capture = pytest.CaptureFixture[str]


def imported(tmp_path: pathlib.Path, capsys: Capture, text: str, *words: str) -> tuple[dict[str, Any], list[str]]:
    """The shares that a text becomes, which can be hosted, and what is said, without the name of its file."""
    file = tmp_path / "file"
    file.write_text(text)
    status = main(["import", str(file), *words])
    out, err = capsys.readouterr()
    shares = tomllib.loads(out).get("share", {})
    assert status == (0 if shares else 1)
    if shares:
        (tmp_path / "toml").write_text(out)
        assert len(read_config(str(tmp_path / "toml")).shares) == len(shares)
    said = err.replace("asyncrevoke: ", "").replace(f"{file}:", "").splitlines()
    for each in said[: None if shares else -1]:
        assert f"# {file}:{each}" in out.splitlines(), "what is said is in the result, too"
    return shares, said


def refused(tmp_path: pathlib.Path, capsys: Capture, text: str, *words: str) -> str:
    file = tmp_path / "file"
    file.write_text(text)
    assert main(["import", str(file), *words]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    return err.removeprefix(f"asyncrevoke: {file}").removesuffix("\n")


# -- ser2net --

SER2NET = """\
%YAML 1.1
---
define: &banner Welcome to \\p
define: &serial /dev/serial/by-id/usb-1-if00
connection: &console
  accepter: telnet(rfc2217),tcp,localhost,2001
  connector: serialdev,
      *(serial)-port0,
      115200n81,local
  timeout: 0
  enable: on
  options:
    banner: *banner
    kickolduser: true
connection: &gps
  accepter: tcp,::1,2002
  connector: serialdev,/dev/ttyS1,4800E72 local xonxoff dtr=off,rts=on
  options:
    max-connections: 3
"""


def test_connections_of_ser2net_are_shares(tmp_path: pathlib.Path, capsys: Capture) -> None:
    """With where they are reached, the settings of the line, and what is defined before."""
    shares, said = imported(tmp_path, capsys, SER2NET)
    assert shares == {
        "console": {
            "device": "/dev/serial/by-id/usb-1-if00-port0",
            "settings": "115200n81",
            "listen": ["telnet://localhost:2001?take"],
        },
        "gps": {
            "device": "/dev/ttyS1",
            "settings": "4800e72",
            "flow": "xonxoff",
            "dtr": False,
            "rts": True,
            "listen": ["tcp://[::1]:2002?limit=3"],
        },
    }
    assert said == [
        "14: kickolduser: a new client takes the keyboard, and the others go on watching",
        "13: banner: no greeting is shown to clients",
        "19: max-connections: one of them at a time has the keyboard",
    ]


def connection(accepter: str = "tcp,localhost,2001", connector: str = "echo", more: str = "") -> str:
    return f"connection: &lab\n  accepter: {accepter}\n  connector: {connector}\n{more}"


def test_a_limit_that_taking_over_leaves_out_is_told(tmp_path: pathlib.Path, capsys: Capture) -> None:
    """An address that gives the keyboard to who comes has no limit of its own."""
    options = "  options:\n    kickolduser: true\n    max-connections: 3\n"
    shares, said = imported(tmp_path, capsys, connection(more=options))
    assert shares["lab"]["listen"] == ["tcp://localhost:2001?take"]
    assert said[-1] == "6: max-connections: with kickolduser it does not apply"


@pytest.mark.parametrize(
    ("connector", "table"),
    [
        ("echo", {}),
        ("tcp,router,23", {"device": "socket://router:23"}),
        ("serialdev,/dev/ttyS0,9600,local,rtscts", {"device": "/dev/ttyS0", "settings": "9600n81", "flow": "rtscts"}),
        ("serialdev(nouucplock),/dev/ttyS0,local,xonxoff=false,rs485=off", {"device": "/dev/ttyS0"}),
    ],
)
def test_connector_is_a_device_or_a_program(
    connector: str, table: dict[str, Any], tmp_path: pathlib.Path, capsys: Capture
) -> None:
    """Of this machine, or of another over the network; an echo is a loopback."""
    shares, said = imported(tmp_path, capsys, connection(connector=connector))
    assert shares == {"lab": {"listen": ["tcp://localhost:2001?limit=1"], **table}}
    assert said == []


TLS = {"tls_certificate": "/etc/ser2net/ser2net.crt", "tls_key": "/etc/ser2net/ser2net.key"}


@pytest.mark.parametrize(
    ("accepter", "table"),
    [
        ("tcp,127.0.0.1,2001", {"listen": ["tcp://127.0.0.1:2001?limit=1"]}),
        ("telnet(rfc2217),ssl,tcp,localhost,2001", {"listen": ["telnet+tls://localhost:2001?limit=1"], **TLS}),
        (
            "ssl(key=/k,cert=/c,CA='/a,b',clientauth),tcp,::1,2001",
            {
                "listen": ["tcp+tls://[::1]:2001?limit=1"],
                "tls_certificate": "/c",
                "tls_key": "/k",
                "tls_clients": "/a,b",
            },
        ),
    ],
)
def test_accepter_is_an_address(accepter: str, table: dict[str, Any], tmp_path: pathlib.Path, capsys: Capture) -> None:
    """In clear, with telnet, and with TLS, for which its own files are taken."""
    shares, said = imported(tmp_path, capsys, connection(accepter))
    assert (shares, said) == ({"lab": table}, [])


def test_clients_that_can_do_more_than_before_are_told(tmp_path: pathlib.Path, capsys: Capture) -> None:
    """Telnet has RFC 2217 here, unless there was some before."""
    assert imported(tmp_path, capsys, connection("telnet,tcp,localhost,1"))[1] == [
        "2: telnet: clients can now change the settings of the port, by RFC 2217"
    ]
    default = "default: {name: rfc2217, value: true, class: telnet}\n"
    assert imported(tmp_path, capsys, default + connection("telnet,tcp,localhost,1"))[1] == []


def test_what_is_open_to_all_stays_so_and_is_said(tmp_path: pathlib.Path, capsys: Capture) -> None:
    """A port alone is on all addresses, of both kinds."""
    shares, said = imported(tmp_path, capsys, connection("tcp,2001"))
    assert shares["lab"] == {
        "listen": ["tcp://0.0.0.0:2001?limit=1", "tcp://[::]:2001?limit=1"],
        "listen_anywhere": True,
    }
    assert said == ["2: lab can be reached from other machines"]


@pytest.mark.parametrize(
    ("accepter", "more", "why"),
    [
        (
            "telnet,mux,certauth,ssl,tcp,2001",
            "",
            "2: telnet,mux,certauth,ssl,tcp,2001: there is no equivalent: attach to the share",
        ),
        ("udp,2001", "", "2: udp,2001: there is no equivalent: attach to the share"),
        ("tcp,router.lab,2001", "", "2: tcp,router.lab,2001: there is no equivalent: attach to the share"),
        (
            "tcp,localhost,2001",
            "  options:\n    remaddr: 10.0.0.1,0\n",
            "5: remaddr: clients cannot be chosen by address, so this share does not listen",
        ),
    ],
)
def test_share_is_never_more_open_than_it_was(
    accepter: str, more: str, why: str, tmp_path: pathlib.Path, capsys: Capture
) -> None:
    """Where who may connect cannot be told, nobody can, over the network."""
    assert imported(tmp_path, capsys, connection(accepter, more=more)) == ({"lab": {}}, [why])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            connection(connector="ipmisol,lan -U admin,115200"),
            ["3: lab is not imported: ipmisol is neither a device nor a program"],
        ),
        (connection(more="  enable: off\n"), ["4: lab is not imported: it is disabled"]),
        (
            connection("ssl(clientauth),tcp,localhost,1"),
            [
                "2: lab is not imported: clientauth cannot use a folder of certificates: put them into one file, and give it as CA"
            ],
        ),
    ],
)
def test_connection_that_cannot_be_shared_is_a_comment(
    text: str, why: list[str], tmp_path: pathlib.Path, capsys: Capture
) -> None:
    """With the reason; where nothing else is shared, the status is 1."""
    shares, said = imported(tmp_path, capsys, text)
    assert (shares, said[:-1]) == ({}, why)
    assert said[-1].endswith("nothing in it can be shared")


def test_one_device_is_one_share(tmp_path: pathlib.Path, capsys: Capture) -> None:
    """Of several connections to one device the first is taken: ours have their devices open all the time."""
    text = connection(connector="serialdev,/dev/ttyS0,local") + connection(
        connector="serialdev,/dev/ttyS0,9600,local"
    ).replace("&lab", "&fast")
    shares, said = imported(tmp_path, capsys, text)
    assert list(shares) == ["lab"]
    assert said == ["4: fast is not imported: lab shares /dev/ttyS0 already, and clients can change its settings"]


def test_defaults_hold_from_their_line_on(tmp_path: pathlib.Path, capsys: Capture) -> None:
    """A class has its own, an explicit word is stronger, and one that is deleted is the base's again."""
    text = """\
default: {name: speed, value: 115200n81}
default: {name: local, value: true, class: serialdev}
default: {name: speed, value: 300e71, class: serialdev}
default: {name: max-connections, value: 7, class: ser2net}
default: {name: chardelay, value: false}
"""
    text += connection(connector="serialdev,/dev/ttyS0")
    text += "delete_default: {name: speed, class: serialdev}\n"
    text += connection(connector="serialdev,/dev/ttyS1,local=false").replace("&lab", "&two")
    text += connection(connector="serialdev,/dev/ttyS2,1200").replace("&lab", "&three")
    shares, said = imported(tmp_path, capsys, text)
    assert [each["settings"] for each in shares.values()] == ["300e71", "115200n81", "1200n81"]
    assert shares["three"]["listen"] == ["tcp://localhost:2001?limit=7"]
    assert [each for each in said if "max-conn" not in each] == [
        "5: default chardelay: there is no equivalent",
        "12: modem lines: they are ignored, as with local",
    ]


def test_traces_are_logs(tmp_path: pathlib.Path, capsys: Capture) -> None:
    """Of what the device has sent, with marks and times if they were asked for; the name is made once."""
    more = """\
  options:
    trace-read: '/var/log/\\d-\\o-\\p'
    trace-both: /var/log/both
    trace-write: /var/log/typed
    trace-timestamp: true
    trace-hexdump: on
"""
    shares, said = imported(tmp_path, capsys, connection(connector="serialdev,/dev/ttyS0,local", more=more))
    assert shares["lab"] == {
        "device": "/dev/ttyS0",
        "listen": ["tcp://localhost:2001?limit=1"],
        "log": "/var/log/ttyS0-lab-2001",
        "log_marks": True,
        "log_times": True,
    }
    assert said == [
        "6: trace-both: typed text is not logged, but its echo is",
        "6: trace-both: a share has one log",
        "9: trace-hexdump: a log has the bytes as they come",
        "7: trace-write: typed text is not logged, but its echo is",
    ]
    dated = connection(more="  options:\n    trace-read: '/var/log/\\Y'\n")
    assert imported(tmp_path, capsys, dated)[1] == [
        "5: /var/log/\\Y: a log keeps its name: give log_size to start new ones"
    ]


def test_nothing_of_ser2net_is_dropped_silently(tmp_path: pathlib.Path, capsys: Capture) -> None:
    """Each line that has no equal is told with its number, and why."""
    text = """\
led: &led1
  driver: sysfs
admin:
  accepter: tcp,2000
rotator: &rot1
  accepter: tcp,2020
  connections: [ *lab ]
frob: nicate
"""
    options = ["banner", "openstr", "closestr", "closeon", "pamauth", "authdir", "allowed-users", "connback", "sendon"]
    more = "  timeout: 10\n  options:\n    led-tx: *led1\n    mdns-txt: one\n    mdns-txt: two\n"
    more += (
        "".join(f"    {name}: x\n" for name in options) + "    telnet-brk-on-sync: true\n    mdns: false\n    sendon:\n"
    )
    head, rest = text.split("rotator")
    _, said = imported(tmp_path, capsys, head + connection(more=more) + "rotator" + rest)
    assert [int(each.partition(":")[0]) for each in said] == [1, 3, 8, *range(10, 23), 25, 28]
    assert "25: rotator rot1: there are no pools of ports: connect to the shares themselves" in said


def test_program_is_started_again_when_it_ends(tmp_path: pathlib.Path, capsys: Capture) -> None:
    """There it begins with each connection."""
    shares, said = imported(tmp_path, capsys, connection(connector="pty,login -f 'lab rat'"))
    assert (shares["lab"]["command"], shares["lab"]["restart"]) == (["login", "-f", "lab rat"], "always")
    assert said == ["3: pty: the program runs all the time, not only while a client is connected"]


def test_port_of_another_server_is_set_and_that_is_said(tmp_path: pathlib.Path, capsys: Capture) -> None:
    """As it was not before."""
    shares, said = imported(tmp_path, capsys, connection(connector="telnet(rfc2217),tcp,router,23"))
    assert shares["lab"]["device"] == "rfc2217://router:23"
    assert said == ["3: settings: 9600n81 is set at the other end, unless you give other settings"]


def test_serial_words_without_an_equal_are_said(tmp_path: pathlib.Path, capsys: Capture) -> None:
    """Those too that have one in part."""
    words = "serialdev(drain_time=5),/dev/ttyS0,nobreak,hangup-when-done,wronly,rs485=1:2,rtscts,xonxoff,frob"
    _, said = imported(tmp_path, capsys, connection(connector=words))
    assert [each.split(":")[1].strip() for each in said] == [
        *("xonxoff", "modem lines", "nobreak", "hangup-when-done", "wronly", "rs485", "frob", "drain_time"),
    ]


def test_included_files_of_ser2net_are_read_in_their_place(tmp_path: pathlib.Path, capsys: Capture) -> None:
    """They know what was defined before, and lines are told by their own names."""
    (tmp_path / "more-1.yaml").write_text(connection(connector="serialdev,*(tty)"))
    (tmp_path / "file").write_text("define: &tty /dev/ttyS0\ninclude: more-*.yaml\n")
    assert main(["import", str(tmp_path / "file")]) == 0
    out, err = capsys.readouterr()
    assert 'device = "/dev/ttyS0"' in out
    assert err == f"asyncrevoke: {tmp_path}/more-1.yaml:3: modem lines: they are ignored, as with local\n"


def test_file_that_includes_itself_is_an_error(tmp_path: pathlib.Path, capsys: Capture) -> None:
    """With the line; twice in turn it may come."""
    file = tmp_path / "file"
    assert refused(tmp_path, capsys, "include: file\n", "--from", "ser2net") == f":1: {file} includes itself"
    (tmp_path / "more").write_text("define: &x y\n")
    shares, _ = imported(tmp_path, capsys, "include: more\ninclude: more\n" + connection())
    assert list(shares) == ["lab"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("connection: &a\n  accepter: tcp,1\n", ":1: connection a needs &NAME, an accepter and a connector"),
        (
            "connection:\n  accepter: tcp,1\n  connector: echo\n",
            ":1: connection needs &NAME, an accepter and a connector",
        ),
        ("connection: &a\n  accepter: *b\n", ":2: nothing above defines 'b'"),
        ("define: &a x\ndefine: &b 'y *(c)'\n", ":2: nothing above defines 'c'"),
        ("connection: &a\n\taccepter: x\n", ":2: found character '\\t' that cannot start any token"),
        ("connection: [1, 2]\n", ":1: names with values are expected here"),
        ("connection: text\n", ":1: names with values are expected here"),
        ("default:\n  value: x\n", ":1: this default has no name"),
        ("define: &a x\nconnection: &b\n  accepter: [1]\n  connector: echo\n", ":3: a text is expected here"),
        ("define: &a x\ndefine: &b \0\n", ":2: special characters are not allowed"),
        ("- connection: x\n", ":1: names with values are expected here"),
        (connection(more="  options:\n    max-connections: many\n"), ":5: 'many' is not a number from 1 to 9999"),
        (connection(connector="pty,sh 'a"), ":3: sh 'a: No closing quotation"),
    ],
)
def test_error_in_a_configuration_of_ser2net_names_its_line(
    text: str, why: str, tmp_path: pathlib.Path, capsys: Capture
) -> None:
    """Nothing is printed then."""
    assert refused(tmp_path, capsys, text, "--from", "ser2net") == why


# -- conserver --

CONSERVER = """\
# a lab
default full { rw *; }
default * { logfile "/var/log/&.log"; timestamp ""; include full; master localhost; }
group crew { users ann, bob; users !eve; }
default card {
    type device; device /dev/ttyC.; devicesubst .=P02d;
    portbase -1; portinc 2;
    baud 115200; parity none; options !ixon, !ixoff;
}
console router { include card; port 5; rw ""; rw crew; ro @lab; timestamp 1lab; logfilemax 10m; }
console "shell" { type exec; exec ssh -t lab \\"a b\\"; timestamp 1hab; logfile /dev/null; }
console far { type host; host ts1; port 7; portbase 2000; protocol raw; logfile ""; }
access * { trusted 127.0.0.1; admin root, crew; }
"""


def test_consoles_of_conserver_are_shares(tmp_path: pathlib.Path, capsys: Capture) -> None:
    """With what the defaults say, ports that are reckoned, and users out of groups."""
    shares, said = imported(tmp_path, capsys, CONSERVER)
    assert shares == {
        "router": {
            "device": "/dev/ttyC09",
            "settings": "115200n81",
            "log": "/var/log/router.log",
            "log_size": "10M",
            "log_marks": True,
            "log_times": True,
            "type": ["ann", "bob"],
            "look": ["ann", "bob", "@lab"],
            "revoke": ["root", "ann", "bob"],
        },
        "shell": {
            "command": ["/bin/sh", "-ce", 'ssh -t lab "a b"'],
            "restart": "always",
            "revoke": ["root", "ann", "bob"],
        },
        "far": {"device": "socket://ts1:2007", "revoke": ["root", "ann", "bob"]},
    }
    assert said == [
        '2: rw *: these are the members of the server\'s group: give group = "NAME"',
        "13: access *: trusted: users of this machine come by the control socket. To let in others, give listen",
        "13: admin: who may revoke may also look",
    ]


def console(words: str) -> str:
    return f"console lab {{\nmaster localhost; rw bob; {words}\n}}\n"


@pytest.mark.parametrize(
    ("words", "table"),
    [
        (
            "type device; device /dev/ttyS0; baud 9600; parity even;",
            {"device": "/dev/ttyS0", "settings": "9600e71", "flow": "xonxoff"},
        ),
        (
            "type device; device /dev/ttyS0; baud 300; parity space; options !ixon,!ixoff,cstopb;",
            {"device": "/dev/ttyS0", "settings": "300s72"},
        ),
        ('type exec; exec "";', {"command": ["/bin/sh", "-i"]}),
        (
            "type exec; exec id; execrunas bob:lab;",
            {"command": ["runuser", "-u", "bob", "-g", "lab", "--", "/bin/sh", "-ce", "id"]},
        ),
        (
            "type exec; exec ssh H-C-P; execsubst H=hs,C=cs,P=p3X; host h; port 255;",
            {"command": ["/bin/sh", "-ce", "ssh h-lab- FF"]},
        ),
        ("type exec; exec Z; execsubst Z=Pa; port 35; portbase 1;", {"command": ["/bin/sh", "-ce", "10"]}),
    ],
)
def test_console_is_a_device_or_a_program(
    words: str, table: dict[str, Any], tmp_path: pathlib.Path, capsys: Capture
) -> None:
    """As it is there: with flow control unless told otherwise, seven bits beside a parity, by a shell, as another user."""
    shares, said = imported(tmp_path, capsys, console(words))
    again = {"restart": "always"} if "command" in table else {}
    assert (shares, said) == ({"lab": {**table, **again, "type": ["bob"], "look": ["bob"]}}, [])


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("type host; host ts1; port 7;", "host: the program telnet connects to it, and must be installed"),
        ("type uds; uds /run/x;", "uds: the program socat connects to it, and must be installed"),
        ("type exec; motd hello;", "motd: no greeting is shown to clients"),
        ("type exec; initcmd x;", "initcmd: no program is run when a device comes"),
        ("type exec; idletimeout 5m;", "idletimeout: no text is sent automatically: use asyncrevoke send"),
        ("type exec; break 4;", "break: a break is always a real one: use asyncrevoke send for a text"),
        ("type exec; aliases one,two;", "aliases: there is no equivalent"),
        ("type exec; tasklist a;", "tasklist: there is no equivalent"),
        (
            "type exec; logfile /x; timestamp 5m;",
            "timestamp: each line has its time, and there are no marks at intervals",
        ),
        ("type device; device /dev/ttyS0; options hupcl,login,!ixon,!ixoff;", "options: hupcl: there is no equivalent"),
        (
            "type device; device /dev/ttyS0; options !autoreinit,!ixon,!ixoff;",
            "options: !autoreinit: there is no equivalent",
        ),
        (
            "type device; device /dev/ttyS0; options crtscts;",
            "options: flow control is rtscts here, without ixon and ixoff",
        ),
        (
            "type device; device /dev/ttyS0; options !ixoff;",
            "options: flow control is none here, without ixon and ixoff",
        ),
        ("type exec; options !autoreinit;", "options: !autoreinit: there is no equivalent"),
        ("type exec; options !login;", "options: !login: there is no equivalent"),
        ("type exec; options !ixon;", "options: !ixon: there is no equivalent"),
        ("type ipmi; host x;", "lab is not imported: ipmi is neither a device nor a program"),
        ("rw x;", "lab is not imported: it has no type"),
        ("type exec; master elsewhere;", "lab is not imported: its master is another machine, elsewhere"),
        (
            "type exec; execrunas :lab;",
            "lab is not imported: no program is run as another group alone: give a user, too",
        ),
    ],
)
def test_nothing_of_conserver_is_dropped_silently(
    words: str, why: str, tmp_path: pathlib.Path, capsys: Capture
) -> None:
    """Each line that has no equal is told with its number, and why."""
    _, said = imported(tmp_path, capsys, console(words))
    assert said[0].partition(": ")[2] == why
    assert said[0].startswith(("1:", "2:"))


@pytest.mark.parametrize(
    ("words", "table", "said"),
    [
        ("rw *;", {}, ['1: rw *: these are the members of the server\'s group: give group = "NAME"']),
        (
            "ro *; rw bob;",
            {"type": ["bob"]},
            ['1: ro *: these are the members of the server\'s group: give group = "NAME"'],
        ),
        ("rw *; rw !eve;", {"type": [], "look": []}, ["1: rw: all but eve: give the names of those who may"]),
        ("rw bob; rw !bob;", {"type": [], "look": []}, []),
        ("rw !bob; rw bob;", {"type": ["bob"], "look": ["bob"]}, []),
        ("rw bob, !;", {"type": ["bob"], "look": ["bob"]}, []),
        ('rw *; rw "";', {"type": [], "look": []}, []),
        ("", {"type": [], "look": []}, []),
    ],
)
def test_nobody_may_more_than_before(
    words: str, table: dict[str, Any], said: list[str], tmp_path: pathlib.Path, capsys: Capture
) -> None:
    """The last word about somebody counts; where others than those named cannot be told, nobody may."""
    text = f"console lab {{ master localhost; type exec; exec id; {words} }}"
    assert imported(tmp_path, capsys, text) == (
        {"lab": {"command": ["/bin/sh", "-ce", "id"], "restart": "always", **table}},
        said,
    )


def test_blocks_without_an_equal_are_said(tmp_path: pathlib.Path, capsys: Capture) -> None:
    """Breaks, tasks and the server's own settings."""
    text = """\
break 4 {
  string "+\\d+;";
  delay 300;
}
task x { cmd reboot; }
config * {
  sslrequired yes; frob "";
}
"""
    _, said = imported(tmp_path, capsys, text + console("type exec;"))
    assert [each.rpartition(": ")[0] for each in said] == [
        "2: break 4: string: a break is always a real one",
        "3: break 4: delay",
        "5: task x: cmd",
        "7: config *: sslrequired",
        "7: config *: frob",
    ]


def test_quotes_and_comments_are_read_as_conserver_does(tmp_path: pathlib.Path, capsys: Capture) -> None:
    """A backslash and quotes take all meaning away but for a quote's; a hash begins a comment anywhere else."""
    text = '"con"sole  my\\ lab { # } "\nmaster localhost;ty\\pe exec;exec   a "# ; }" \\{\\"\n  b # x;\n ; rw "";}'
    shares, said = imported(tmp_path, capsys, text, "--from", "conserver")
    assert shares["my lab"]["command"] == ["/bin/sh", "-ce", 'a # ; } {"\n  b']
    assert said == []


def test_included_files_of_conserver_are_read_in_their_place(tmp_path: pathlib.Path, capsys: Capture) -> None:
    """Even within a block; a hash that is not at the line's beginning is a comment, and a circle an error."""
    (tmp_path / "part").write_text("type exec;\nmotd x;\n")
    (tmp_path / "file").write_text("console lab {\n#include part\nmaster localhost; rw bob;\n #include nothing\n}")
    assert main(["import", str(tmp_path / "file")]) == 0
    assert capsys.readouterr().err == f"asyncrevoke: {tmp_path}/part:2: motd: no greeting is shown to clients\n"
    (tmp_path / "part").write_text("#include part\n")
    assert main(["import", str(tmp_path / "file")]) == 1
    assert "files include each other more than 10 deep" in capsys.readouterr().err
    (tmp_path / "part").unlink()
    assert main(["import", str(tmp_path / "file")]) == 1
    assert capsys.readouterr().err == f"asyncrevoke: {tmp_path}/part: No such file or directory\n"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("console a {\n type exec;\n", ":1: console a: the file ends before this does"),
        ("console a {\n type exec; rw }\n", ":2: rw: there is no ; after it"),
        (
            "console a { type exec;\n console b {",
            ":2: { is out of place: look for a missing { or } before it",
        ),
        ("\n}\n", ":2: } is out of place: look for a missing { or } before it"),
        ("console a; {}", ":1: ; is out of place: look for a missing { or } before it"),
        ('console a {\n motd "never\n; }', ":2: this quote has no end"),
        ("console a { type exec; }\nconsole", ":2: console: the file ends before this does"),
        ("console a {\ninclude b; }", ":2: nothing above defines the default 'b'"),
        ("console a {\ntype device; device x; baud fast; }", ":2: baud 'fast' is not a number"),
        (
            "console a {\ntype device; device x;\nparity some; }",
            ":3: parity 'some': give one of none, even, odd, mark, space",
        ),
        ("console a {\ntype device; device x; devicesubst x=q; }", ":2: devicesubst: 'q' is not a substitution"),
        (
            "console a { type exec; logfile /x;\ntimestamp often; }",
            ":2: timestamp 'often': give such as 5m, 1h, 1d or 1lab",
        ),
        ("console a {\ntype host; }", ":1: console a has no host"),
        (
            "console a { type device; device x; devicesubst x=Pd;\nport 0; portbase -1; }",
            ":2: with portbase and portinc this is port -1: give one from 0 to 65535",
        ),
        ("console a {\ntype host; host h; }", ":1: console a has no port"),
        ("console a {\ntype device; }", ":1: console a has no device"),
        ("console a {\ntype uds; }", ":1: console a has no uds"),
        (
            "console a { type exec; logfile /x;\nlogfilemax big; }",
            ":2: logfilemax 'big' is not a size: give bytes, or such as 500k or 10m",
        ),
        ("console a {\ntype host; host h; port ghost; }", ":2: port 'ghost' is not a number"),
    ],
)
def test_error_in_a_configuration_of_conserver_names_its_line(
    text: str, why: str, tmp_path: pathlib.Path, capsys: Capture
) -> None:
    """Nothing is printed then."""
    assert refused(tmp_path, capsys, text, "--from", "conserver") == why


# -- both --


def test_kind_is_guessed_or_told(tmp_path: pathlib.Path, capsys: Capture) -> None:
    """A text that looks like neither is refused; so is one that is none."""
    assert refused(tmp_path, capsys, "[share.lab]\n") == (
        " cannot be told to be of ser2net or of conserver: give --from"
    )
    (tmp_path / "file").write_bytes(b"# caf\xc3\xa9\n# caf\xe9\n")
    assert main(["import", str(tmp_path / "file")]) == 1
    assert capsys.readouterr().err == f"asyncrevoke: {tmp_path}/file:2: this is not UTF-8\n"
    assert main(["import", str(tmp_path / "missing")]) == 1
    assert "No such file" in capsys.readouterr().err


def test_name_that_comes_twice_is_one_share(tmp_path: pathlib.Path, capsys: Capture) -> None:
    """The first; the others are comments."""
    shares, said = imported(tmp_path, capsys, connection() + connection())
    assert (list(shares), said) == (["lab"], ["4: lab is not imported: there is a share of this name already"])
    shares, said = imported(tmp_path, capsys, console("type exec;") * 2)
    assert (list(shares), said) == (["lab"], ["4: lab is not imported: there is a share of this name already"])


def test_extra_that_is_missing_is_named(
    tmp_path: pathlib.Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what installs it."""
    monkeypatch.setitem(__import__("sys").modules, "tomli_w", None)
    (tmp_path / "file").write_text(CONSERVER)
    assert main(["import", str(tmp_path / "file")]) == 1
    assert capsys.readouterr().err == "asyncrevoke: tomli_w is missing: pip install 'asyncrevoke[import]'\n"


def packaged(path: str) -> str:
    """The text of a file of another package."""
    if not pathlib.Path(path).exists():
        pytest.skip(f"there is no {path}: its Debian package is not installed, or without its examples")
    return pathlib.Path(path).read_text()


def test_own_configuration_of_ser2nets_package(tmp_path: pathlib.Path, capsys: Capture) -> None:
    """Two ports, each at two speeds there, are two shares."""
    shares, said = imported(tmp_path, capsys, packaged("/etc/ser2net.yaml"))
    assert {name: table["device"] for name, table in shares.items()} == {
        "con0096": "/dev/ttyS0",
        "con1096": "/dev/ttyS1",
    }
    assert len([each for each in said if "is not imported" in each]) == 2


def test_examples_of_ser2nets_package(tmp_path: pathlib.Path, capsys: Capture) -> None:
    """All of them, taken out of the comments that they stand in."""
    head, define, rest = packaged("/usr/share/doc/ser2net/examples/ser2net.yaml").partition("define: &confver 1.0\n")
    lines = [line.removeprefix("#").removeprefix(" ") for line in rest.splitlines()]
    shares, said = imported(tmp_path, capsys, head + define + "\n".join(lines))
    assert list(shares) == ["con00", "con01", "con2", "con3", "con4", "con5", "con6", "rack-3-slot-5", "con7"]
    assert shares["con2"]["settings"] == "9600e71"
    assert any(each.endswith("ipmisol is neither a device nor a program") for each in said)


@pytest.mark.parametrize(
    ("name", "shares"),
    [
        (
            "conserver.cf",
            [
                *(f"{each}.conserver.com" for each in ("web1", "ns1", "ns2", "ldap1")),
                *("ssh", "ttya", "modem1.conserver.com", "modem2.conserver.com"),
            ],
        ),
        ("test.cf", ["shell", "bash", "web", "b"]),
    ],
)
def test_examples_of_conservers_package(name: str, shares: list[str], tmp_path: pathlib.Path, capsys: Capture) -> None:
    """Each console of them is a share."""
    made, _ = imported(tmp_path, capsys, packaged(f"/usr/share/doc/conserver-server/examples/{name}"))
    assert list(made) == shares
