"""What the tests' outcomes are, and how failures are shown."""

from __future__ import annotations

import pytest


def test_every_distinct_failure_is_shown_once_with_thread_round_and_count(rerun):
    result = rerun("""
        def check(n):
            assert n == 0, "not zero"

        def test_it(thread_index, round_index):
            if round_index == 0:
                return
            if thread_index == 0:
                check(1)
            if thread_index == 1 and round_index == 2:
                raise ValueError("two")
    """)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*___ test_it ___*",
            "thread 0, round 1; 2 of 6 executions",
            ">           check(1)",
            "E       AssertionError: not zero",
            "E       assert 1 == 0",
            "thread 1, round 2; 1 of 6 executions",
            "E           ValueError: two",
            "2 findings, 0 notes",
            "FAILED *::test_it - AssertionError: not zero (thread 0, round 1; 2 of 6 executions)",
        ]
    )
    text = result.stdout.str()
    assert text.count("E       AssertionError: not zero") == 1
    assert text.count("E           ValueError: two") == 1


def test_two_errors_of_one_kind_from_different_lines_are_two(rerun):
    result = rerun("""
        def test_it(thread_index):
            if thread_index == 0:
                raise ValueError("same")
            raise ValueError("same")
    """)
    result.stdout.fnmatch_lines(
        ["thread 0, round 0; 3 of 6 executions", "thread 1, round 0; 3 of 6 executions"]
    )


def test_of_very_many_distinct_failures_ten_are_shown_and_the_others_named(rerun):
    lines = "\n".join(f"    if n == {n}: raise ValueError('no {n}')" for n in range(12))
    source = f"def test_it(thread_index):\n    n = thread_index\n{lines}\n"
    result = rerun(source, threads=12, rounds=1)
    result.stdout.fnmatch_lines(
        [
            "and 2 more distinct failures:",
            "  ValueError: no * (thread *, round 0; 1 of 12 executions)",
        ]
    )
    assert sum(line.startswith("E  ") for line in result.outlines) == 10


def test_one_error_with_different_texts_is_one_and_the_texts_are_listed(rerun):
    result = rerun("""
        def test_it(thread_index, round_index):
            assert thread_index + 2 * round_index > 8
    """)
    result.stdout.fnmatch_lines(
        ["thread 0, round 0; 6 of 6 executions", "E       assert (0 + (2 * 0)) > 8", "also, *"]
    )
    assert result.stdout.str().count("E       assert") == 1


def test_the_traceback_has_none_of_our_frames(rerun):
    result = rerun("""
        import unittest
        from hypothesis import given, settings, strategies

        def test_function(tmp_path):
            raise ValueError("f")

        class TestClass:
            def test_method(self):
                raise ValueError("m")

        class TestCase(unittest.TestCase):
            def test_case(self):
                self.assertEqual(1, 2)

        @given(strategies.just(1))
        @settings(database=None)
        def test_property(n):
            raise ValueError("p")

    """)
    result.assert_outcomes(failed=4)
    result.stdout.no_fnmatch_line("*pytest_freethread*")
    result.stdout.no_fnmatch_line("*threading.py*")


def test_the_traceback_of_a_fixture_asked_for_in_the_body_has_none_of_our_frames(rerun):
    result = rerun("""
        import pytest

        @pytest.fixture
        def bad():
            raise ValueError("b")

        def test_it(request):
            request.getfixturevalue("bad")
    """)
    result.stdout.fnmatch_lines([">       request.getfixturevalue(*", "E  *ValueError: b"])
    result.stdout.no_fnmatch_line("*pytest_freethread*")


@pytest.mark.parametrize("style", ["auto", "long", "short", "line", "native"])
def test_every_style_of_traceback_shows_both_errors(rerun, style):
    result = rerun("""
        def test_it(thread_index):
            if thread_index == 0:
                raise KeyError("first")
            raise ValueError("second")
    """, f"--tb={style}")  # fmt: skip
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*KeyError: 'first'*"])
    if style == "line":
        result.stdout.fnmatch_lines(
            ["/*:3: KeyError: 'first' (thread 0, round 0; 3 of 6 executions)"]
        )
    else:
        result.stdout.fnmatch_lines(
            [
                "thread 0, round 0; 3 of 6 executions",
                "*KeyError: 'first'*",
                "thread 1, round 0; 3 of 6 executions",
                "*ValueError: second*",
            ]
        )
    result.stdout.no_fnmatch_line("*pytest_freethread*")


def test_no_traceback_where_none_is_wanted(rerun):
    result = rerun("def test_it(): assert False", "--tb=no")
    result.assert_outcomes(failed=1)
    result.stdout.no_fnmatch_line("thread 0*")
    result.stdout.no_fnmatch_line("E  *")


def test_a_chained_exception_is_shown_with_its_cause(rerun):
    result = rerun("""
        def test_it():
            try:
                raise KeyError("cause")
            except KeyError as error:
                raise ValueError("effect") from error
    """)
    result.stdout.fnmatch_lines(
        ["*KeyError: 'cause'", "*direct cause of*", "*ValueError: effect", "FAILED *effect*"]
    )


def test_an_exception_group_and_notes_are_shown(rerun):
    result = rerun("""
        def test_it():
            error = ValueError("part")
            error.add_note("remember me")
            raise ExceptionGroup("whole", [error])
    """)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*ExceptionGroup: whole*", "*ValueError: part*", "*remember me*"])


def test_an_exception_whose_text_cannot_be_made_is_a_failure(rerun):
    result = rerun("""
        class Odd(Exception):
            def __str__(self):
                raise RuntimeError("no text")

        def test_it():
            raise Odd
    """)
    result.assert_outcomes(failed=1)
    assert "INTERNALERROR" not in result.stdout.str()


def test_a_skip_in_one_thread_is_shown_as_such(rerun):
    result = rerun("""
        import pytest

        def test_it(thread_index):
            if thread_index == 1:
                pytest.skip("not on this thread")
    """)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["   skipped in 3 of 6 executions: not on this thread  *::test_it"])


def test_a_skip_in_every_thread_is_a_skip(rerun):
    result = rerun("""
        import pytest
        import unittest

        def test_body():
            pytest.skip("not today")

        @pytest.mark.skip(reason="never")
        def test_mark():
            pass

        @pytest.mark.skipif(True, reason="if")
        def test_condition():
            pass

        def test_import():
            pytest.importorskip("no_such_module_at_all")

        @pytest.fixture
        def skipping():
            pytest.skip("by fixture")

        def test_fixture(skipping):
            pass

        class TestCase(unittest.TestCase):
            def test_case(self):
                self.skipTest("by case")

            @unittest.skip("by decorator")
            def test_decorator(self):
                pass

        def test_raised():
            raise unittest.SkipTest("raised")
    """, "-rs")  # fmt: skip
    result.assert_outcomes(skipped=8)
    result.stdout.fnmatch_lines_random(
        [
            "SKIPPED [[]1[]] test_*.py:*: not today",
            "SKIPPED [[]1[]] test_*.py:*: never",
            "SKIPPED [[]1[]] test_*.py:*: by case",
            "SKIPPED [[]1[]] test_*.py:*: by decorator",
        ]
    )


def test_a_failure_beside_a_skip_is_a_failure(rerun):
    result = rerun("""
        import pytest

        def test_it(thread_index):
            if thread_index == 0:
                pytest.skip("no")
            assert False
    """)
    result.assert_outcomes(failed=1)


def test_a_skip_by_a_fixture_of_one_thread_is_a_skip_like_without_us(rerun):
    result = rerun("""
        import pytest

        @pytest.fixture
        def odd(thread_index):
            if thread_index == 1:
                pytest.skip("odd")

        def test_it(odd):
            pass
    """)
    result.assert_outcomes(skipped=1)


def test_expected_failures(rerun):
    result = rerun("""
        import pytest

        @pytest.mark.xfail
        def test_fails():
            assert False

        @pytest.mark.xfail
        def test_passes():
            pass

        @pytest.mark.xfail(strict=True)
        def test_passes_though_strict():
            pass

        def test_imperative():
            pytest.xfail("known")

        @pytest.mark.xfail(raises=ValueError)
        def test_fails_otherwise():
            raise KeyError

        @pytest.mark.xfail
        def test_fails_in_one_thread(thread_index):
            assert thread_index == 0

        @pytest.mark.xfail(run=False)
        def test_not_run():
            raise SystemExit
    """)
    result.assert_outcomes(xfailed=4, xpassed=1, failed=2)
    result.stdout.fnmatch_lines_random(["FAILED *::test_fails_otherwise*"])
    result.stdout.fnmatch_lines_random(["FAILED *::test_passes_though_strict*"])


def test_an_expected_failure_hides_no_other_one(rerun):
    result = rerun("""
        import pytest

        @pytest.mark.xfail(raises=ValueError)
        def test_it(thread_index):
            if thread_index == 0:
                raise ValueError("expected")
            raise KeyError("unexpected")
    """)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines_random(["*KeyError: 'unexpected'*"])


def test_a_failure_can_be_declared_expected_while_the_test_runs(rerun):
    result = rerun("""
        import pytest

        def test_apply(request):
            request.applymarker(pytest.mark.xfail)
            assert False

        def test_add(request):
            request.node.add_marker(pytest.mark.xfail)
            assert False
    """)
    result.assert_outcomes(xfailed=2)


def test_expected_failures_are_no_findings(rerun):
    result = rerun("""
        import pytest

        @pytest.mark.xfail
        def test_it():
            assert False
    """)
    result.stdout.no_fnmatch_line("*1 finding*")


def test_expected_exceptions_are_caught_in_each_thread(rerun):
    result = rerun("""
        import unittest
        import pytest

        def test_it(thread_index):
            with pytest.raises(ValueError, match=f"from {thread_index}") as caught:
                raise ValueError(f"from {thread_index}")
            assert str(caught.value) == f"from {thread_index}"

        class TestCase(unittest.TestCase):
            def test_case(self):
                with self.assertRaises(ValueError):
                    raise ValueError
    """)
    result.assert_outcomes(passed=2)


def test_an_expected_exception_that_does_not_come_is_a_failure(rerun):
    result = rerun("""
        import pytest

        def test_it():
            with pytest.raises(ValueError):
                pass
    """)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E  *DID NOT RAISE*ValueError*"])


def test_explicit_failures(rerun):
    result = rerun("""
        import pytest

        def test_it():
            pytest.fail("as you wish")

        def test_without_trace():
            pytest.fail("only this", pytrace=False)
    """)
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(
        ["E  *Failed: as you wish", "*only this", "FAILED *::test_it - Failed: as you wish *"]
    )


@pytest.mark.parametrize(
    "raised", ["SystemExit(3)", "GeneratorExit()", "BaseException('odd')", "UserWarning('w')"]
)
def test_whatever_escapes_from_a_thread_is_a_failure(rerun, raised):
    result = rerun(f"""
        def test_it():
            raise {raised}

        def test_next():
            pass
    """)
    result.assert_outcomes(failed=1, passed=1)


def test_keyboard_interrupt_ends_the_session(rerun_apart):
    result = rerun_apart("""
        import pytest

        def test_it(thread_index):
            if thread_index == 1:
                raise KeyboardInterrupt

        def test_not_run():
            pass
    """)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["*KeyboardInterrupt*"])
    result.stdout.no_fnmatch_line("*passed*")


def test_exit_ends_the_session(rerun_apart):
    result = rerun_apart("""
        import pytest

        def test_it(thread_index):
            if thread_index == 1:
                pytest.exit("that is enough", returncode=7)

        def test_not_run():
            pass
    """)
    assert result.ret == 7
    result.stdout.fnmatch_lines(["*Exit: that is enough*"])


def test_warnings_are_collected_as_in_a_plain_run(rerun):
    result = rerun("""
        import warnings

        def test_it():
            warnings.warn("careful", UserWarning)
    """)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*test_*.py:4: UserWarning: careful"])


def test_warnings_as_errors_fail(rerun):
    source = """
        import pytest
        import warnings

        def test_by_option():
            warnings.warn("careful", UserWarning)

        @pytest.mark.filterwarnings("error:again")
        def test_by_marker():
            warnings.warn("again", UserWarning)

        @pytest.mark.filterwarnings("ignore")
        def test_ignored():
            warnings.warn("careful", UserWarning)
    """
    result = rerun(source, "-W", "error::UserWarning")
    result.assert_outcomes(failed=2, passed=1)
    result = rerun(source)
    result.assert_outcomes(failed=1, passed=2)


def test_a_warning_as_error_from_a_returned_value_shows_the_test(rerun):
    result = rerun("def test_it(): return 1", "-W", "error")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*PytestReturnNotNoneWarning: *test_it*"])


def test_output_of_threads_is_captured_and_shown_on_failure(rerun):
    result = rerun("""
        import sys

        def test_it(thread_index):
            sys.stdout.write(f"hello from {thread_index}\\n")
            assert thread_index == 0

        def test_silent():
            print("nobody reads this")
    """, rounds=1)  # fmt: skip
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(["*Captured stdout call*"])
    result.stdout.fnmatch_lines_random(["hello from 0", "hello from 1"])
    result.stdout.no_fnmatch_line("nobody*")


def test_failures_in_unittest_cases(rerun):
    result = rerun("""
        import unittest

        class TestCase(unittest.TestCase):
            def test_fails(self):
                self.assertEqual(1, 2)

            @unittest.expectedFailure
            def test_expected(self):
                self.assertEqual(1, 2)

            @unittest.expectedFailure
            def test_unexpected(self):
                pass

        class TestSetUp(unittest.TestCase):
            def setUp(self):
                raise OSError("no set-up")

            def test_it(self):
                pass

        class TestTearDown(unittest.TestCase):
            def tearDown(self):
                raise OSError("no tear-down")

            def test_it(self):
                pass

        class TestCleanup(unittest.TestCase):
            def test_it(self):
                self.addCleanup(self.fail, "no cleanup")
    """)
    text = result.stdout.str()
    for line in ("1 != 2", "no set-up", "no tear-down", "no cleanup", "Unexpected success"):
        assert line in text
    outcomes = result.parseoutcomes()
    assert outcomes["xfailed"] == 1
    assert outcomes["failed"] + outcomes.get("errors", 0) == 5


def test_subtests_of_unittest_are_all_shown(rerun):
    result = rerun("""
        import unittest

        class TestCase(unittest.TestCase):
            def test_it(self):
                for n in range(4):
                    with self.subTest(n=n):
                        self.assertNotIn(n, [1, 3])
    """)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*1 unexpectedly found in*", "*in subtest*n=1*"])
    text = result.stdout.str()
    assert "3 unexpectedly found in" in text


def test_subtests_that_pass(rerun):
    result = rerun("""
        import unittest

        class TestCase(unittest.TestCase):
            def test_it(self):
                for n in range(4):
                    with self.subTest(n=n):
                        self.assertIn(n, range(4))
    """)
    assert result.ret == 0
    assert result.parseoutcomes()["passed"] == 1


@pytest.mark.skipif(pytest.version_tuple < (9,), reason="pytest has subtests since 9.0")
def test_subtests_of_pytest(rerun):
    result = rerun("""
        def test_fails(subtests):
            for n in range(4):
                with subtests.test("number", n=n):
                    assert n not in (1, 3)

        def test_passes(subtests):
            with subtests.test():
                pass

        def test_goes_on(subtests):
            with subtests.test("first"):
                assert False, "in the subtest"
            raise ValueError("in the test")
    """)
    result.stdout.fnmatch_lines_random(
        [
            "E  *assert 1 not in (1, 3)",
            "*in subtest [[]number[]] (n=1)",
            "*assert 3 not in (1, 3)*",
            "E  *in the subtest",
            "E  *ValueError: in the test",
        ]
    )
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_the_messages_of_assertions_are_explained_as_ever(rerun):
    result = rerun("""
        def test_it():
            assert {"a": 1, "b": 2} == {"a": 1, "b": 3}
    """)
    result.stdout.fnmatch_lines(["E  *Differing items:", "E  *{'b': 2} != {'b': 3}"])


def test_locals_are_shown_if_wanted(rerun):
    result = rerun("""
        def test_it():
            answer = 42
            assert False
    """, "--showlocals")  # fmt: skip
    result.stdout.fnmatch_lines(["answer     = 42"])


def test_a_lost_update_is_a_failure_of_the_test(rerun):
    result = rerun("""
        import pytest

        @pytest.fixture
        def counter():
            box = {"n": 0, "read": __import__("threading").Barrier(2)}
            yield box
            assert box["n"] == 2

        @pytest.mark.freethread(shared=["counter"])
        def test_add(counter):
            seen = counter["n"]
            counter["read"].wait()
            counter["n"] = seen + 1
    """)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["teardown, round 0; 3 of 3 rounds", "E  *assert 1 == 2"])
