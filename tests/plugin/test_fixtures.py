"""Fixtures: whose they are, how long they live, on which thread they are made."""

from __future__ import annotations

import pytest


def test_a_mutable_fixture_is_fresh_for_every_thread_and_round(rerun):
    result = rerun("""
        import pytest

        @pytest.fixture
        def basket():
            return []

        @pytest.fixture
        def wrapped(basket):
            return {"basket": basket}

        def test_it(basket, wrapped):
            assert basket == []
            basket.append(1)
            assert wrapped["basket"] is basket
            assert basket == [1]
    """, threads=4)  # fmt: skip
    result.assert_outcomes(passed=1)


def test_fixtures_are_set_up_and_torn_down_on_the_main_thread_once_per_thread_and_round(rerun):
    result = rerun("""
        import threading
        import pytest

        events = []

        @pytest.fixture
        def resource(thread_index, round_index):
            here = threading.current_thread() is threading.main_thread()
            events.append((round_index, "up", thread_index, here))
            yield
            here = threading.current_thread() is threading.main_thread()
            events.append((round_index, "down", thread_index, here))

        def test_it(resource, thread_index, round_index):
            events.append((round_index, "body", thread_index, True))

        @pytest.mark.thread_unsafe
        def test_order():
            assert all(here for *_, here in events)
            for round_ in range(2):
                steps = [(what, who) for r, what, who, _ in events if r == round_]
                assert steps[:3] == [("up", 0), ("up", 1), ("up", 2)]
                assert sorted(steps[3:6]) == [("body", 0), ("body", 1), ("body", 2)]
                assert steps[6:] == [("down", 2), ("down", 1), ("down", 0)]
            assert len(events) == 2 * 9
    """, threads=3, rounds=2)  # fmt: skip
    result.assert_outcomes(passed=2)


def test_a_shared_fixture_is_one_instance_per_round(pytester):
    pytester.makepyfile("""
        import threading
        import pytest

        rounds = []

        @pytest.fixture
        def base():
            return object()

        @pytest.fixture
        def cache(base, thread_index, round_index):
            assert thread_index == 0
            made = {"base": base, "lock": threading.Lock(), "users": [], "round": round_index}
            yield made
            assert sorted(made["users"]) == [0, 1, 2]
            rounds.append(made["round"])

        @pytest.fixture
        def own(cache, base):
            return {"cache": cache, "base": base}

        @pytest.mark.freethread(threads=3, rounds=4, shared=["cache"])
        def test_shared(own, cache, base, thread_index, round_index):
            assert own["cache"] is cache
            assert own["base"] is base
            assert base is not cache["base"]  # only what is named is shared
            assert cache["round"] == round_index
            with cache["lock"]:
                cache["users"].append(thread_index)

        def test_one_for_each_round():
            assert rounds == [0, 1, 2, 3]
    """)
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(passed=2)


def test_what_a_shared_fixture_finds_at_its_end_fails_the_test(pytester):
    pytester.makepyfile("""
        import pytest

        @pytest.fixture
        def counter():
            box = {"n": 0}
            yield box
            assert box["n"] == 100, "updates were lost"

        @pytest.mark.freethread(threads=2, rounds=3, shared=["counter"])
        def test_counts(counter):
            counter["n"] = 1
    """)
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["teardown, round 0; 3 of 3 rounds", "E  *AssertionError: updates were lost*"]
    )


def test_a_fixture_that_fails_at_its_end_in_one_thread_fails_the_test(rerun):
    result = rerun("""
        import pytest

        torn_down = []

        @pytest.fixture
        def first():
            yield
            torn_down.append("first")

        @pytest.fixture
        def bad(first, thread_index):
            yield
            if thread_index == 1:
                raise OSError("not closed")

        def test_it(bad):
            pass

        @pytest.mark.thread_unsafe
        def test_the_others_were_torn_down_all_the_same():
            assert len(torn_down) == 2 * 3
    """)
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(
        ["teardown, thread 1, round 0; 3 of 6 times", "*OSError: not closed"]
    )


def test_a_fixture_that_fails_in_the_first_round_is_an_error_like_without_us(rerun):
    result = rerun("""
        import pytest

        @pytest.fixture
        def bad(thread_index):
            if thread_index == 1:
                raise OSError("no such thing")

        def test_it(bad):
            pass
    """)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        ["*ERROR at setup of test_it*", "*OSError: no such thing", "ERROR *::test_it - OSError*"]
    )


def test_a_fixture_that_fails_in_a_later_round_fails_the_test_and_is_torn_down(rerun):
    result = rerun("""
        import pytest

        alive = set()

        @pytest.fixture
        def resource(thread_index):
            alive.add(thread_index)
            yield
            alive.remove(thread_index)

        @pytest.fixture
        def bad(resource, thread_index, round_index):
            if (thread_index, round_index) == (1, 2):
                raise OSError("no more")

        def test_it(bad):
            pass

        @pytest.mark.thread_unsafe
        def test_nothing_is_left():
            assert not alive
    """, rounds=4)  # fmt: skip
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(["setup, round 2; 1 of 4 rounds", "*OSError: no more"])


def test_wider_scopes_are_set_up_once_and_shared(rerun):
    result = rerun("""
        import pytest

        made = []

        def fixture(scope):
            @pytest.fixture(scope=scope)
            def wide():
                made.append(scope)
                yield [scope]
                made.append(f"end of {scope}")
            return wide

        of_session, of_module, of_class = map(fixture, ("session", "module", "class"))

        seen = set()

        class TestClass:
            def test_1(self, of_session, of_module, of_class):
                seen.update([id(of_session), id(of_module), id(of_class)])

            def test_2(self, of_session, of_module, of_class):
                seen.update([id(of_session), id(of_module), id(of_class)])

        @pytest.mark.thread_unsafe
        def test_once():
            assert made == ["session", "module", "class", "end of class"]
            assert len(seen) == 3
    """)
    result.assert_outcomes(passed=3)


def test_a_function_fixture_on_top_of_a_wide_one(rerun):
    result = rerun("""
        import pytest

        @pytest.fixture(scope="module")
        def server():
            return {"clients": 0, "open": set()}

        @pytest.fixture
        def client(server):
            server["clients"] += 1
            me = server["clients"]
            server["open"].add(me)
            yield me
            server["open"].remove(me)

        seen = []

        def test_it(client, server):
            assert client in server["open"]
            seen.append(client)

        @pytest.mark.thread_unsafe
        def test_closed(server):
            assert sorted(seen) == [1, 2, 3, 4, 5, 6]
            assert not server["open"]
    """)
    result.assert_outcomes(passed=2)


@pytest.mark.parametrize("scope", ["function", "module"])
def test_parametrised_fixtures(rerun, scope):
    result = rerun(f"""
        import pytest

        @pytest.fixture(params=["a", "b"], scope={scope!r})
        def letter(request):
            return request.param

        seen = []

        def test_it(letter):
            seen.append(letter)

        @pytest.mark.thread_unsafe
        def test_both():
            assert sorted(seen) == ["a"] * 6 + ["b"] * 6
    """)
    result.assert_outcomes(passed=3)


def test_indirect_parameters_and_dynamic_values(rerun):
    result = rerun("""
        import pytest

        @pytest.fixture
        def doubled(request):
            return [2 * request.param]

        @pytest.mark.parametrize("doubled, n", [(1, 2), (2, 4)], indirect=["doubled"])
        def test_it(doubled, n):
            assert doubled == [n]
            doubled.clear()
    """)
    result.assert_outcomes(passed=2)


def test_autouse_and_usefixtures(rerun):
    result = rerun("""
        import pytest

        made = []

        @pytest.fixture(autouse=True)
        def always(thread_index):
            made.append(("always", thread_index))

        @pytest.fixture
        def wanted(thread_index):
            made.append(("wanted", thread_index))

        @pytest.mark.usefixtures("wanted")
        def test_it():
            pass

        def test_then():
            pass

        @pytest.mark.thread_unsafe
        def test_made():
            assert made[:6] == [("always", 0), ("wanted", 0), ("always", 1), ("wanted", 1)] + [
                ("always", 0), ("wanted", 0)]
            assert made.count(("wanted", 1)) == 3
            assert made.count(("always", 1)) == 6
    """)
    result.assert_outcomes(passed=3)


def test_a_fixture_that_overrides_another_of_its_name(rerun):
    result = rerun("""
        import pytest

        @pytest.fixture
        def items():
            return ["module"]

        class TestClass:
            @pytest.fixture
            def items(self, items):
                self.own = items
                return [*items, "class"]

            def test_it(self, items):
                assert items == ["module", "class"]
                assert self.own == ["module"]
                items.clear()
                self.own.clear()
    """)
    result.assert_outcomes(passed=1)


def test_finalizers_run_each_round(rerun):
    result = rerun("""
        import pytest

        ended = []

        @pytest.fixture
        def resource(request, thread_index):
            request.addfinalizer(lambda: ended.append(thread_index))

        def test_it(resource, request):
            pass

        def test_of_its_own(request, thread_index):
            request.addfinalizer(lambda: ended.append(f"body {thread_index}"))

        @pytest.mark.thread_unsafe
        def test_ended():
            assert ended[:6] == [1, 0] * 3
            assert sorted(ended[6:]) == ["body 0"] * 3 + ["body 1"] * 3
    """)
    result.assert_outcomes(passed=3)


@pytest.mark.parametrize("fixture", ["tmp_path", "tmpdir"])
def test_temporary_paths_are_private_and_empty(rerun, fixture):
    result = rerun(f"""
        import os
        from pathlib import Path

        seen = []

        def test_it({fixture}):
            path = Path({fixture})
            assert list(path.iterdir()) == []
            (path / "data").write_text("x")
            (path / "data").rename(path / "moved")
            assert os.listdir(path) == ["moved"]
            seen.append(str(path))

        def test_different_ones_that_are_gone(thread_index):
            assert len(set(seen)) == len(seen) == 4 * 3
    """, threads=4)  # fmt: skip
    result.assert_outcomes(passed=2)


def test_the_factory_of_temporary_paths_is_private(rerun):
    result = rerun("""
        def test_it(tmp_path_factory):
            path = tmp_path_factory.mktemp("data", numbered=False)
            (path / "file").write_text("x")
            assert tmp_path_factory.mktemp("more").name == "more0"
            assert tmp_path_factory.mktemp("more").name == "more1"

        def test_legacy(tmpdir_factory):
            assert str(tmpdir_factory.mktemp("data").ensure("file")).endswith("file")
    """, threads=4)  # fmt: skip
    result.assert_outcomes(passed=2)


def test_a_wide_fixture_keeps_its_temporary_path(rerun):
    result = rerun("""
        import pytest

        @pytest.fixture(scope="module")
        def database(tmp_path_factory):
            path = tmp_path_factory.mktemp("db") / "file"
            path.write_text("rows")
            return path

        @pytest.fixture
        def copy(database, tmp_path):
            path = tmp_path / "copy"
            path.write_text(database.read_text())
            return path

        def test_it(database, copy):
            assert database.read_text() == copy.read_text() == "rows"

        def test_again(database, tmp_path):
            assert database.read_text() == "rows"
            assert tmp_path not in database.parents
    """)
    result.assert_outcomes(passed=2)


def test_temporary_paths_of_failed_threads_are_kept(rerun, pytester):
    result = rerun("""
        def test_it(tmp_path, thread_index):
            (tmp_path / f"by-{thread_index}").write_text("x")
            assert thread_index == 0
    """, "--basetemp=kept", "-o", "tmp_path_retention_policy=failed", rounds=1)  # fmt: skip
    result.assert_outcomes(failed=1)
    kept = {path.name for path in (pytester.path / "kept").rglob("by-*")}
    assert "by-1" in kept


def test_the_request_is_the_threads_own(rerun):
    result = rerun("""
        import pytest

        @pytest.fixture
        def name(request):
            assert request.fixturename == "name"
            assert request.scope == "function"
            return request.node.name

        class TestClass:
            @pytest.mark.parametrize("n", [1])
            def test_it(self, request, name, n):
                assert request.node.name == name == "test_it[1]"
                assert request.function.__name__ == "test_it"
                assert request.cls is TestClass
                assert request.instance is self
                assert request.module.__name__ == __name__
                assert request.node.get_closest_marker("parametrize")
                assert "name" in request.fixturenames
                assert request.config.option.freethread is True
    """)
    result.assert_outcomes(passed=1)


def test_a_fixture_sees_the_instance_that_its_test_runs_on(rerun):
    result = rerun("""
        import pytest

        class TestClass:
            @pytest.fixture
            def prepared(self, request):
                assert request.instance is self
                self.items = []

            def test_it(self, prepared):
                assert self.items == []
                self.items.append(1)
    """, threads=4)  # fmt: skip
    result.assert_outcomes(passed=1)


def test_fixtures_can_be_asked_for_in_the_body(rerun):
    result = rerun("""
        import threading
        import pytest

        made = []

        @pytest.fixture
        def late(thread_index, round_index):
            assert threading.current_thread() is threading.main_thread()
            made.append((thread_index, round_index))
            yield [thread_index]
            made.remove((thread_index, round_index))

        @pytest.fixture(scope="module")
        def wide():
            return ["wide"]

        wides = set()

        def test_it(request, thread_index, round_index):
            value = request.getfixturevalue("late")
            assert value == [thread_index]
            assert request.getfixturevalue("late") is value
            assert (thread_index, round_index) in made
            wides.add(id(request.getfixturevalue("wide")))

        @pytest.mark.thread_unsafe
        def test_torn_down(wide):
            assert made == []
            assert wides == {id(wide)}
    """, threads=3)  # fmt: skip
    result.assert_outcomes(passed=2)


def test_fixtures_can_be_asked_for_in_a_fixture(rerun):
    result = rerun("""
        import pytest

        @pytest.fixture
        def below():
            return []

        @pytest.fixture
        def basket(below):
            return below

        @pytest.fixture
        def chosen(request):
            return request.getfixturevalue("basket")

        def test_known_before(chosen, basket):
            assert chosen is basket
            assert not basket
            basket.append(1)

        def test_known_by_name_only(chosen, request):
            assert chosen == []
            chosen.append(1)
            assert request.getfixturevalue("below") is chosen
    """, threads=4)  # fmt: skip
    result.assert_outcomes(passed=2)


def test_a_shared_fixture_can_use_what_each_thread_has_too(pytester):
    pytester.makepyfile("""
        import pytest

        @pytest.fixture
        def log(tmp_path, monkeypatch):
            monkeypatch.setenv("LOG", str(tmp_path))
            return tmp_path / "log"

        @pytest.mark.freethread(threads=4, rounds=3, shared=["log"])
        def test_it(log, tmp_path, thread_index):
            assert log.parent != tmp_path
            assert list(tmp_path.iterdir()) == []
            (tmp_path / "own").write_text("x")
            log.with_name(f"by-{thread_index}").write_text("x")
    """)
    result = pytester.runpytest_inprocess("-v")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*PASSED [[]4 threads x 3[]]*"])


def test_an_unknown_fixture_in_the_body_fails_like_without_us(rerun):
    result = rerun("""
        def test_it(request):
            request.getfixturevalue("nothing")
    """)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*fixture 'nothing' not found*"])


def test_an_unknown_fixture_of_a_test_is_an_error_like_without_us(rerun):
    result = rerun("def test_it(nothing): pass")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["E  *fixture 'nothing' not found"])


def test_indices_are_right_in_every_fixture_and_zero_without_threads(rerun):
    result = rerun("""
        import pytest

        @pytest.fixture
        def port(thread_index):
            return 8000 + thread_index

        @pytest.fixture
        def address(port, round_index):
            return f"{port}/{round_index}"

        seen = []

        def test_it(address, thread_index, round_index):
            assert address == f"{8000 + thread_index}/{round_index}"
            seen.append(address)

        @pytest.mark.thread_unsafe
        def test_alone(address, thread_index, round_index):
            assert (address, thread_index, round_index) == ("8000/0", 0, 0)
            assert sorted(seen) == ["8000/0", "8000/1", "8001/0", "8001/1"]
    """, rounds=2)  # fmt: skip
    result.assert_outcomes(passed=2)


def test_xunit_methods_run_for_each_instance(rerun):
    result = rerun("""
        import threading
        import pytest

        calls = []

        def setup_module():
            calls.append("setup_module")

        def setup_function(function):
            calls.append("setup_function")

        def teardown_function(function):
            calls.append("teardown_function")

        def test_function():
            pass

        class TestClass:
            @classmethod
            def setup_class(cls):
                calls.append("setup_class")

            def setup_method(self, method):
                assert threading.current_thread() is threading.main_thread()
                self.items = []
                calls.append("setup_method")

            def teardown_method(self, method):
                assert self.items == [1]
                calls.append("teardown_method")

            def test_method(self):
                assert self.items == []
                self.items.append(1)

        @pytest.mark.thread_unsafe
        def test_calls():
            function = ["setup_function"] * 2 + ["teardown_function"] * 2
            method = ["setup_method"] * 2 + ["teardown_method"] * 2
            assert calls == ["setup_module", *function * 3, "setup_class", *method * 3] + [
                "setup_function"]
    """)
    result.assert_outcomes(passed=3)


def test_every_thread_and_round_has_an_instance_of_its_own(rerun):
    result = rerun("""
        import pytest

        instances = []

        class TestClass:
            state = None

            def test_it(self):
                assert self.state is None
                self.state = 1
                instances.append(self)

        @pytest.mark.thread_unsafe
        def test_different():
            assert len({id(each) for each in instances}) == 6
    """)
    result.assert_outcomes(passed=2)


def test_every_unittest_case_has_its_own_set_up_and_cleanups(rerun):
    result = rerun("""
        import threading
        import unittest

        calls = []

        class TestCase(unittest.TestCase):
            @classmethod
            def setUpClass(cls):
                calls.append("setUpClass")

            def setUp(self):
                assert threading.current_thread() is threading.main_thread()
                self.items = []
                self.addCleanup(calls.append, "cleanup")

            def tearDown(self):
                assert threading.current_thread() is threading.main_thread()
                assert self.items == [1]
                calls.append("tearDown")

            def test_it(self):
                self.assertEqual(self.items, [])
                self.items.append(1)

            def test_then(self):
                self.items.append(1)

        class TestNow(unittest.TestCase):
            def test_calls(self):
                self.assertEqual(calls, ["setUpClass", *["tearDown", "cleanup"] * 12])
    """)
    result.assert_outcomes(passed=3)


def test_unittest_cases_can_use_fixtures(rerun):
    result = rerun("""
        import unittest
        import pytest

        @pytest.fixture
        def basket(request):
            request.instance.basket = []

        class TestCase(unittest.TestCase):
            @pytest.fixture(autouse=True)
            def paths(self, tmp_path):
                self.path = tmp_path

            @pytest.mark.usefixtures("basket")
            def test_it(self):
                self.assertEqual(self.basket, [])
                self.basket.append(1)
                (self.path / "file").write_text("x")
                self.assertEqual(len(list(self.path.iterdir())), 1)
    """, threads=4)  # fmt: skip
    result.assert_outcomes(passed=1)


def test_properties_are_recorded_once(rerun, pytester):
    result = rerun("""
        def test_it(record_property):
            record_property("build", 7)
    """, "--junitxml=report.xml")  # fmt: skip
    result.assert_outcomes(passed=1)
    assert (pytester.path / "report.xml").read_text().count('name="build" value="7"') == 1


def test_many_rounds_of_a_wide_fixture_leave_nothing_behind(rerun):
    result = rerun("""
        import pytest

        @pytest.fixture(scope="module")
        def wide():
            return object()

        @pytest.fixture
        def narrow(wide):
            yield wide

        def test_it(narrow):
            pass

        @pytest.mark.thread_unsafe
        def test_few_finalizers(request, wide):
            definition = request._fixture_defs["wide"]
            assert len(definition._finalizers) < 10
    """, rounds=50)  # fmt: skip
    result.assert_outcomes(passed=2)
