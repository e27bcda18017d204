import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from ehrsequencing.data.sources.account import count_rows, new_account, read_account, stated


@settings(deadline=None, max_examples=50)
@given(
    st.integers(0, 40), st.integers(1, 10**9), st.data(),
)  # fmt: skip
def test_every_row_is_counted_once(rows, first, data):
    numbers = st.lists(st.integers(first, first + rows - 1), max_size=60) if rows else st.just([])
    kept, dropped = data.draw(numbers), data.draw(numbers)
    reasons = [f"reason {number % 3}" for number in dropped]
    account = new_account()
    order = data.draw(st.permutations(range(first, first + rows)))
    count_rows(
        account, pl.Series(order, dtype=pl.Int64), pl.Series(kept, dtype=pl.Int64),
        pl.DataFrame({"row": dropped, "reason": reasons}, schema={"row": pl.Int64, "reason": pl.String}), "by rule",
    )  # fmt: skip
    assert account["rows"] == rows
    assert account["rows_with_events"] == len(set(kept))
    assert account["rows_dropped"].total() == len(set(dropped) - set(kept))
    assert account["rows_without_events"].total() == rows - len(set(kept) | set(dropped))
    assert read_account(stated(account)) == account
