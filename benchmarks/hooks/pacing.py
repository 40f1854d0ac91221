"""Calls at a steady rate, whatever the answers take: in asyncio, for wrk only goes as fast as it can."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx

IDLE_S = 1.0


@dataclass(slots=True)
class Paced:
    """Milliseconds from when a call was due until its answer; what was not a 200, by status and reason, how
    often; summaries of cards; and how connections broke."""

    ms: list[float] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    summaries: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)


def post(url: str, make: Callable[[int], tuple[bytes, str]], *, per_second: float, seconds: float) -> Paced:
    """`make(n)` gives the body and the token of the nth call, which is made when it is due."""
    return asyncio.run(_post(url, make, per_second, seconds))


async def _post(
    url: str, make: Callable[[int], tuple[bytes, str]], per_second: float, seconds: float
) -> Paced:
    found = Paced()
    # An idle connection is given up before the server gives it up: who sends just then would lose the call.
    limits = httpx.Limits(max_connections=64, max_keepalive_connections=64, keepalive_expiry=IDLE_S)
    async with httpx.AsyncClient(timeout=10, limits=limits) as http:
        began, tasks = time.perf_counter(), []

        async def call(number: int, due: float) -> None:
            body, token = make(number)
            headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
            try:
                answer = await http.post(url, content=body, headers=headers)
            except httpx.TransportError as error:
                found.broken.append(type(error).__name__)
                return
            if answer.status_code != 200:
                found.refused[f"{answer.status_code}: {answer.json()['issue'][0]['diagnostics'][:120]}"] += 1
                return
            found.ms.append((time.perf_counter() - due) * 1000)
            found.summaries += [card["summary"] for card in answer.json()["cards"]]

        for number in range(int(per_second * seconds)):
            due = began + number / per_second
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.append(asyncio.ensure_future(call(number, due)))
        await asyncio.gather(*tasks)
    return found
