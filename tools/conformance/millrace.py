"""Calls the millrace binary and reads its JSON."""

import json
import pathlib
import subprocess
from dataclasses import dataclass, field

import numpy as np


class MillraceError(RuntimeError):
    """The program failed; the message is its own."""


@dataclass
class Millrace:
    binary: pathlib.Path
    extra: list[str] = field(default_factory=list)
    timeout: float = 300.0

    def _json(self, *arguments: str) -> dict:
        command = [str(self.binary), *arguments, "--json", *self.extra]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=self.timeout, check=False)
        except subprocess.TimeoutExpired as error:
            raise MillraceError(f"no answer within {self.timeout:.0f} s") from error
        if done.returncode != 0:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise MillraceError(f"exit code {done.returncode}: {reason}")
        try:
            return json.loads(done.stdout)
        except json.JSONDecodeError as error:
            raise MillraceError(f"standard output is not JSON: {error}") from error

    def logits(self, model: pathlib.Path, ids: list[int], *options: str) -> np.ndarray:
        """float32 [ids, vocab]; not-a-number where the program printed null."""
        answer = self._json("logits", str(model), "--ids", ",".join(map(str, ids)), *options)
        return np.array(answer["logits"], dtype=np.float32)

    def greedy(self, model: pathlib.Path, count: int, *options: str, ids: list[int] | None = None,
               text: str | None = None) -> list[int]:
        prompt = ["-p", text] if ids is None else ["--ids", ",".join(map(str, ids))]
        answer = self._json("run", str(model), *prompt, "-n", str(count), "--temperature", "0", "--ignore-eos",
                            "--compute-dtype", "f32", *options)
        return answer["token_ids"]
