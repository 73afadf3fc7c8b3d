"""Classes of mistakes -> the exit codes that scripts rely on."""

import signal
from pathlib import Path

import numpy as np
import pytest
from torch._utils import ExceptionWrapper

from lmtemplate import errors

KINDS = [errors.UserError, *errors.UserError.__subclasses__()]


def test_no_two_mistakes_share_an_exit_code() -> None:
    codes = [kind.exit_code for kind in KINDS]
    codes += [*errors.SIGNALS.values(), errors.BAD_PROGRAM, errors.BROKEN_PIPE]
    assert len(codes) == len(set(codes))
    assert 0 not in codes


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_ends_a_run_with_the_code_of_a_shell(name: str) -> None:
    assert errors.SIGNALS[name] == 128 + signal.Signals[name]


def test_the_message_of_a_process_that_reads_data_loses_its_traceback() -> None:
    try:
        raise errors.DataError("shard x is missing")
    except errors.DataError:
        handed_on = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(errors.DataError) as error:
        handed_on.reraise()
    assert str(error.value) == "shard x is missing"


def test_a_name_that_looks_like_an_error_hides_nothing_before_it() -> None:
    name = "a DataError: all is well"
    assert str(errors.DataError(f"{name} is no text")) == f"{name} is no text"


def test_a_message_is_one_line_whatever_it_quotes() -> None:
    assert str(errors.ConfigError("a name\nerror: another line")) == "a name error: another line"


def test_an_error_of_a_library_in_cython_is_none_of_the_user_s_code() -> None:
    """Whose files have relative names, as a user's own have none."""
    with pytest.raises(ValueError, match="MT19937") as error:
        np.random.RandomState().set_state(("PCG64", [0] * 624, 0))
    assert str(errors.own_line(error.value)).startswith(f"{Path('tests', 'test_errors.py')}:")
    assert error.tb.tb_next is not None
    assert errors.own_line(error.value.with_traceback(error.tb.tb_next)) is None


def test_of_a_long_message_the_middle_is_left_out() -> None:
    """Half of `rm -r runs/a` would be another command."""
    text = str(errors.ConfigError(f"a name {'x' * 1000} of which the end is (rm -r runs/a)"))
    assert len(text) < 700
    assert text.startswith("a name xxx")
    assert text.endswith("xxx of which the end is (rm -r runs/a)")
