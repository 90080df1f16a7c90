"""Rates, pauses and the circuit breaker, in virtual time."""

from __future__ import annotations

import asyncio
import random
from datetime import UTC, datetime
from itertools import pairwise

import pytest

from judges.backends.breaker import RETURN_S, AwayError, Breaker
from judges.backends.limits import MAX_DELAY_S, Bucket, Pace, backoff, retry_after

from .virtual_time import run


def most_in(times: list[float], window_s: float) -> int:
    """The most events in any window of this length, by looking at each."""
    return max(sum(start <= time < start + window_s for time in times) for start in times)


@pytest.mark.parametrize(("per_minute", "callers"), [(600, 1), (600, 16), (600, 256), (60, 50), (7.5, 3)])
def test_a_bucket_lets_its_rate_through_and_no_more(per_minute: float, callers: int) -> None:
    """Against the definition: in any window of t seconds at most rate * (t + 1 s of burst) + 1 units pass."""
    times: list[float] = []

    async def caller(bucket: Bucket, stream: range) -> None:
        for _ in stream:
            await bucket.take()
            times.append(asyncio.get_running_loop().time())
            await asyncio.sleep(random.Random(len(times)).random())

    async def main() -> None:
        bucket = Bucket(per_minute)
        await asyncio.gather(*(caller(bucket, range(600 // callers)) for _ in range(callers)))

    run(main())
    rate = per_minute / 60
    for window_s in (0.5, 1.0, 5.0, 60.0):
        assert most_in(times, window_s) <= rate * (window_s + 1) + 1 + 1e-6
    if callers >= 16:
        assert len(times) / times[-1] > 0.95 * rate, "the rate is used"


def test_a_bucket_spends_units_and_accounts_for_what_was_really_used() -> None:
    async def main() -> list[float]:
        bucket, clock, times = Bucket(60_000), asyncio.get_running_loop().time, []
        for units in (1000, 5000, 1000):
            await bucket.take(units)
            times.append(clock())
        bucket.correct(2000)
        await bucket.take(1)
        times.append(clock())
        bucket.correct(-1_000_000)
        await asyncio.sleep(10)
        await bucket.take(3000)
        await bucket.take(1)
        times.append(clock())
        return times

    # 1,000 units a second, and one second's worth at once. What was not used is not saved up beyond that.
    assert run(main()) == pytest.approx([0, 0, 5, 8, 18 + 2], abs=1e-6)


def test_callers_are_served_in_turn() -> None:
    async def main() -> list[int]:
        bucket, served = Bucket(60), []

        async def caller(number: int) -> None:
            await bucket.take()
            served.append(number)

        await asyncio.gather(*(caller(number) for number in range(20)))
        return served

    assert run(main()) == list(range(20))


def test_after_a_pause_callers_come_at_the_rate_and_not_at_once() -> None:
    times: list[float] = []

    async def caller(pace: Pace) -> None:
        await pace.take(10)
        times.append(asyncio.get_running_loop().time())

    async def main(rate: float | None) -> None:
        times.clear()
        pace = Pace(rate, None)
        callers = [asyncio.create_task(caller(pace)) for _ in range(100)]
        await asyncio.sleep(0.95)
        pace.pause(20)
        await asyncio.gather(*callers)

    run(main(600))
    late = [time for time in times if time > 1]
    assert min(late) >= 20.95
    assert most_in(late, 1.0) <= 10 * 2 + 1
    assert max(late) < 20.95 * 1.25 + 1 + 10, "slots before the pause are not lost to those after it"


def test_without_a_rate_a_pause_spreads_callers() -> None:
    async def main() -> list[float]:
        pace, times = Pace(None, None), []
        pace.pause(8)

        async def caller() -> None:
            await pace.take(10)
            times.append(asyncio.get_running_loop().time())

        await asyncio.gather(*(caller() for _ in range(200)))
        return times

    times = run(main())
    assert min(times) >= 8
    assert max(times) <= 10
    assert most_in(times, 0.2) < 60


def test_retry_after() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert retry_after({"retry-after": "7"}) == 7
    assert retry_after({"retry-after-ms": "250"}) == 0.25
    assert retry_after({"retry-after": "Thu, 01 Jan 2026 00:00:09 GMT"}, now) == 9
    assert retry_after({"retry-after": "Wed, 31 Dec 2025 00:00:09 GMT"}, now) == 0
    assert retry_after({"retry-after": "99999999"}) == 600
    assert retry_after({"retry-after": "nan"}) == 0
    assert retry_after({"retry-after": "soon"}) is None
    assert retry_after({"retry-after": f"Thu, 01 Jan 2026 00:00:09 +{'9' * 40}"}) is None
    assert retry_after({}) is None


def test_backoff() -> None:
    chance = random.Random(0)
    assert all(7 <= backoff(1, 7.0, chance) <= 8.75 for _ in range(50))
    assert all(0.25 <= backoff(1, None, chance) <= 0.5 for _ in range(50))
    assert all(15 <= backoff(50, None, chance) <= 30 for _ in range(50))
    assert backoff(10_000, None, chance) <= 30


class Outage:
    """`callers` tasks that call, each `calls` times, a server that is away from `start` to `end`."""

    def __init__(self, start: float, end: float, after: int = 5, patience_s: float = 300.0) -> None:
        self.start, self.end = start, end
        self.breaker = Breaker(after, patience_s)
        self.times: list[float] = []
        self.back: list[float] = []

    async def caller(self, calls: int) -> None:
        clock = asyncio.get_running_loop().time
        while calls:
            while self.breaker.holds:
                await self.breaker.ready()
            self.times.append(clock())
            await asyncio.sleep(0.2)
            if self.start <= clock() < self.end:
                self.breaker.failed(str(id(asyncio.current_task())), "refused")
                continue
            if clock() >= self.end:
                self.back.append(clock())
            self.breaker.succeeded()
            calls -= 1

    async def run(self, callers: int = 64, calls: int = 30) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(callers):
                group.create_task(self.caller(calls))


def test_while_the_server_is_away_one_call_at_a_time_tries_it() -> None:
    outage = Outage(2, 100)
    run(outage.run())
    during = [time for time in outage.times if 2.2 < time < 99]
    assert 4 <= len(during) <= 12, "0.5 s doubling to 30 s"
    pauses = [later - earlier for earlier, later in pairwise(during)]
    assert all(pause <= MAX_DELAY_S + 0.2 + 1e-6 for pause in pauses)
    assert pauses[-1] > 5 * pauses[0]
    assert len(outage.back) + len([time for time in outage.times if time < 2]) >= 64 * 30, "every call was made"


def test_callers_come_back_one_after_the_other() -> None:
    outage = Outage(2, 20)
    run(outage.run(callers=200, calls=12))
    back = min(outage.back)
    returning = [time for time in outage.times if back <= time < back + RETURN_S]
    # Those back early have gone on calling, five times a second.
    assert most_in([time for time in returning if time < back + 0.2], 0.02) < 25


def test_patience_ends() -> None:
    outage = Outage(2, 1e9, patience_s=60)
    with pytest.raises(ExceptionGroup) as caught:
        run(outage.run())
    (error,) = caught.value.exceptions
    assert isinstance(error, AwayError)
    assert 60 <= error.seconds < 62
    assert (error.last, error.alone) == ("refused", False)
    assert max(outage.times) > 60, "the last try is made when patience ends"


def test_one_call_that_breaks_the_server_is_no_outage() -> None:
    async def main() -> list[str]:
        breaker, made = Breaker(1, 60.0), []

        async def caller(name: str) -> None:
            while breaker.holds:
                await breaker.ready()
            made.append(name)
            await asyncio.sleep(0.1)
            breaker.failed(name, "status 500") if name == "bad" else breaker.succeeded()
            if name == "bad" and made.count("bad") < 4:
                await caller(name)

        await asyncio.gather(caller("bad"), *(caller(f"good {number}") for number in range(3)))
        return made

    assert set(run(main())) == {"bad", "good 0", "good 1", "good 2"}


def test_an_answer_in_between_keeps_it_closed() -> None:
    async def main() -> bool:
        breaker = Breaker(3, 60.0)
        for _ in range(20):
            breaker.failed("request", "x")
            breaker.failed("request", "x")
            breaker.succeeded()
        closed = not breaker.is_open
        for _ in range(3):
            breaker.failed("request", "x")
        return closed and breaker.is_open

    assert run(main())


def test_few_requests_that_fail_alone_are_told_from_an_outage() -> None:
    outage = Outage(0, 1e9, after=5, patience_s=60)
    with pytest.raises(ExceptionGroup) as caught:
        run(outage.run(callers=2))
    error = caught.value.exceptions[0]
    assert isinstance(error, AwayError)
    assert error.alone
    assert not outage.breaker.is_open, "others may be tried"
