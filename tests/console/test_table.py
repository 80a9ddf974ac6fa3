"""The table of other console servers in docs/console-server.md: each of our cells is held by a test."""

import ast
import itertools
import pathlib

TESTS = pathlib.Path(__file__).parents[1]
DOCS = TESTS.parent / "docs" / "console-server.md"
#: By row, the tests that hold our cell; none where it is a no.
PROOFS = {
    "rate, parity, bits, stop bits, flow control": """
        test_port::test_the_far_end_has_the_settings_and_lines_of_the_share test_port::test_settings_are_read_from_a_file""",
    "changed while it is in use": """
        test_port::test_command_shows_and_changes_a_port test_menu::test_port_is_asked_changed_and_shown
        test_listening::test_pyserial_sets_the_port""",
    "break": """
        test_port::test_a_break_is_held_at_the_far_end_until_the_keyboard_is_taken
        test_port::test_command_shows_and_changes_a_port test_in_tmux::test_port_is_shown_and_changed
        test_listening::test_pyserial_sets_the_port test_listening::test_telnets_own_break_is_sent""",
    "modem lines are shown and set": """
        test_port::test_command_shows_and_changes_a_port test_menu::test_port_is_asked_changed_and_shown
        test_listening::test_pyserial_sets_the_port""",
    "DTR and RTS at open": "test_port::test_the_far_end_has_the_settings_and_lines_of_the_share",
    "lines drop at close, or not": "",
    "RS-485": "",
    "maps of characters, hex, delays": "",
    "lists this machine's ports": """
        test_ports::test_ports_are_listed_with_what_is_behind_them test_ports::test_who_has_a_port_is_told""",
    "keeps other programs off": "test_serial::test_whoever_is_not_privileged_is_kept_out_where_that_was_asked_for",
    "a device that is unplugged": "test_console::test_unplugged_device_comes_back_to_those_who_wait",
    "is found again under another node": "test_cli::test_device_goes_and_comes_back",
    "is open only while somebody is there": "",
    "is lent to another program": "test_port::test_a_port_is_lent_and_nobody_is_taken_off",
    "a program on a terminal of its own": "test_cli::test_program_ends_and_so_does_all",
    "and is started again when it ends": "test_hosting::test_program_is_started_again_when_the_share_says_so",
    "a port of another server": """
        test_console::test_where_nothing_can_be_thrown_away_the_keyboard_is_handed_on
        test_port::test_the_far_end_has_the_settings_and_lines_of_the_share""",
    "several see the same output": "test_console::test_each_sees_all_and_one_types",
    "one at a time types": "test_console::test_each_sees_all_and_one_types",
    "takes the keyboard by force, and the other watches": """
        test_cli::test_keyboard_changes_hands_and_both_are_told test_together::test_keyboard_is_taken_and_given_back
        test_together::test_keyboard_goes_back_when_the_taker_leaves""",
    "watches only": "test_cli::test_read_only_watches_from_the_last_output_on",
    "who is there, since when, typing or not": """
        test_operating::test_ls_who_shows_people_alone test_together::test_each_may_ask_who_is_here
        test_operating::test_top_follows_takes_somebody_off_and_leaves_the_terminal_as_it_was""",
    "one person is taken off": """
        test_console::test_one_is_taken_off_and_the_others_notice_nothing
        test_record::test_who_is_taken_off_is_told_by_whom_and_why""",
    "and it is reported that nothing more of his comes": """
        test_console::test_nothing_passes_once_the_revocation_is_reported""",
    "a message to the others": "test_together::test_line_is_said_to_all_others",
    "the escape key explains itself": "test_menu::test_menu_shows_itself_and_is_left",
    "the last output for who comes late": "test_console::test_late_client_gets_the_last_output",
    "a client that reads nothing": """
        test_console::test_program_is_no_faster_than_the_slowest_who_reads
        test_console::test_who_does_not_read_is_taken_off_and_told""",
    "a banner": "",
    "a text that is sent at opening, or when idle": "",
    "idle people are disconnected": "",
    "is suspended, or goes on to another console": "",
    "by user and group": "test_hosting::test_each_may_do_what_the_share_allows",
    "password": "",
    "by address": "test_listening::test_other_machines_are_let_in_only_if_the_file_says_so",
    "takes away from other programs": "test_cli::test_kernel_revocation_names_the_holders_and_hangs_up",
    "raw TCP": "test_listening::test_bytes_go_both_ways_as_they_are",
    "telnet": "test_listening::test_a_person_by_telnet_types_at_a_terminal",
    "RFC 2217": """
        test_listening::test_pyserial_sets_the_port test_listening::test_serialx_sets_the_port
        test_listening::test_ser2net_sets_the_port""",
    "TLS": "test_listening::test_openssl_types_and_reads",
    "client certificates": """
        test_listening::test_certificate_says_who_it_is
        test_listening::test_without_a_certificate_of_the_authority_nobody_comes_in""",
    "UDP, SCTP": "",
    "one address for a pool of ports": "",
    "announced by mDNS": "",
    "several machines look like one": "",
    "SSH": "test_cli::test_escape_key_detaches",
    "in the browser": """
        test_web_shares::test_share_is_listed_shown_and_typed_into
        test_web_shares::test_in_a_browser_the_keyboard_of_a_share_is_taken_and_a_user_taken_off""",
    "log of the output": "test_console::test_output_is_logged_and_a_full_disk_is_no_end",
    "what is typed": "",
    "time of each line": "test_record::test_lines_begin_with_the_time_when_they_begin",
    "who came, went, was taken off, sent a break": "test_record::test_record_of_a_share_says_all_that_happens",
    "begun anew at a size": "test_record::test_rotated_files_are_whole_and_in_order",
    "opened anew for logrotate": "test_record::test_log_is_opened_anew",
    "name with the date": "",
    "counts of bytes": "",
    "one log of all": "test_record::test_server_says_what_happens_once_and_in_one_form",
    "systemd unit": "test_cli::test_examples_of_the_console_server_are_valid",
    "goes into the background by itself": "",
    "configuration file": "test_cli::test_several_from_a_file",
    "defaults for many ports": "",
    "includes other files": "",
    "reload": "test_hosting::test_reload_touches_nobody_whose_share_did_not_change",
    "a share is stopped and started": "test_hosting::test_share_comes_again_when_it_is_started",
    "reads others' configuration": """
        test_import::test_connections_of_ser2net_are_shares test_import::test_consoles_of_conserver_are_shares""",
    "for scripts: a text and its answer": "test_send::test_answer_is_printed_alone test_send::test_texts_are_typed_in_turn",
    "status for programs": "test_cli::test_ls_shows_who_is_there",
    "what happens, for programs": "test_cli::test_ls_watch_shows_what_happens",
    "live view": "test_operating::test_top_follows_takes_somebody_off_and_leaves_the_terminal_as_it_was",
    "runs a command on the console": "test_cli::test_input_from_a_pipe_is_sent_and_its_answer_shown",
    "transfers files (XMODEM)": "",
    "lights or a bell": "",
    "completion in the shell": """
        test_completion::test_shell_completes_a_name
        test_completion::test_names_are_offered_where_they_mean_something""",
    "manual pages": "test_manual::test_each_command_has_a_page test_manual::test_pages_are_in_the_wheel",
    "as a library": "test_floors::test_public_names_can_be_imported_from_the_top",
    "other systems than Linux": "",
}


def rows() -> list[list[str]]:
    """The cells of each row, without those of the heads."""
    text = DOCS.read_text().partition("## Beside ser2net")[2].partition("\n## ")[0]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    return [row for row in cells if row[0] and set(row[0]) != {"-"}]


def is_no(cell: str) -> bool:
    return cell.partition(":")[0] == "no"


def test_each_cell_of_ours_is_held_by_a_test() -> None:
    """Each row names tests that there are, and a row that names none is a no."""
    there = {
        f"{file.stem}::{node.name}"
        for file in TESTS.rglob("test_*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert [row[0] for row in rows()] == list(PROOFS)
    named = set(itertools.chain.from_iterable(each.split() for each in PROOFS.values()))
    assert named - there == set()
    assert {row[0] for row in rows() if is_no(row[1])} == {name for name, tests in PROOFS.items() if not tests}


def test_what_two_of_them_have_is_here_or_it_is_said_why_not() -> None:
    """A no of ours has its reason there; each row has a cell for each of the four."""
    for name, ours, *theirs in rows():
        assert len(theirs) == 3, name
        assert all((ours, *theirs)), name
        if ours == "no":
            assert sum(map(is_no, theirs)) >= 2, f"{name}: say why not"
