"""Load from wrk (Debian), with bodies and ready-signed tokens read from files by a Lua script.

Signing costs as much as a call does, so every token is signed before the run and used once.
"""

from __future__ import annotations

import re
import resource
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

LUA = """
local bodies, tokens = {}, {}
for number = 1, %(bodies)d do
  local file = io.open("%(folder)s/body" .. number, "rb")
  bodies[number] = file:read("*a")
  file:close()
end
for line in io.lines("%(folder)s/tokens") do tokens[#tokens + 1] = line end
local at = 0
request = function()
  at = at + 1
  local headers = {["Content-Type"] = "application/json"}
  if #tokens > 0 then headers["Authorization"] = "Bearer " .. (tokens[at] or "used-up") end
  return wrk.format("POST", nil, headers, bodies[(at - 1) %% #bodies + 1])
end
done = function(summary, latency, requests)
  local errors = summary.errors
  print(string.format("requests %%d micros %%d refused %%d errors %%d", summary.requests, summary.duration,
    errors.status, errors.connect + errors.read + errors.write + errors.timeout))
  for _, share in ipairs({50, 75, 90, 95, 99, 99.9}) do
    print(string.format("p%%s %%.3f", share, latency:percentile(share) / 1000))
  end
  print(string.format("worst %%.3f", latency.max / 1000))
end
"""


@dataclass(frozen=True, slots=True)
class Run:
    """What wrk saw. Milliseconds; `cores` is the share of a core that wrk itself used."""

    per_second: float
    p: dict[str, float]
    worst: float
    refused: int
    errors: int
    said: str
    cores: float


def available() -> bool:
    """Whether wrk is installed."""
    return shutil.which("wrk") is not None


def post(
    url: str, bodies: Sequence[bytes], tokens: Sequence[str], *, connections: int, seconds: int, folder: Path
) -> Run:
    """Post the bodies in turn, each with the next token, for so many seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, body in enumerate(bodies, 1):
        (folder / f"body{number}").write_bytes(body)
    (folder / "tokens").write_text("".join(f"{token}\n" for token in tokens))
    script = folder / "post.lua"
    script.write_text(LUA % {"bodies": len(bodies), "folder": folder})
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "5s", "-s", str(script), url]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    found = re.search(r"requests (\d+) micros (\d+) refused (\d+) errors (\d+)", said)
    if found is None:
        raise RuntimeError(f"wrk said: {said[-400:]}")
    requests, micros, refused, errors = (int(one) for one in found.groups())
    p = {name: float(value) for name, value in re.findall(r"p([\d.]+) ([\d.]+)", said)}
    worst = float(re.search(r"worst ([\d.]+)", said)[1])  # type: ignore[index]
    return Run(requests / micros * 1e6, p, worst, refused, errors, said, used / seconds)
