"""How well the small speaking model answers through the whole service: `make bench-answers`.

All questions come from the evaluation set of the checkpoint: their speakers, phrasings or noise are new to the model.
They are sent to `POST /v1/respond` with the default sampling, each with the silence in which the answer is given.

* questions: right answers by group, intended answers, word error of the sound against its own transcript.
* turns: a second question after the first answer; how many of both are right.
* interruptions: a second question while the agent speaks; whether the agent is silent half a second later, and answers.
* roles: share of right answers of every role, how often it changes the assistant's answer to its own, and how often
  the name is the one that the text prompt gives.
* voices: whether a classifier of spectral statistics knows the voice of an answer from other answers.
* a long call: questions in the first and in the last two minutes of ten.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile
from rich.console import Console
from rich.progress import track
from rich.table import Table

from gateway.cli.console import result_console
from gateway.client import Client, RespondParams
from loadtest.machine import machine
from loadtest.server import build_tiny, started
from model_repository.evaluation.questions import EvaluationSet, Question
from model_repository.evaluation.recognizer import spoken_word_error, words
from model_repository.synthetic.speaking.features import log_mel
from model_repository.synthetic.speaking.intents import ASSISTANT, BY_NAME, PROMPT_NAMES
from model_repository.synthetic.speaking.intents import answers as intended_answers
from model_repository.synthetic.speaking.roles import ROLE_PROMPTS
from model_repository.synthetic.speaking.voices import NAMES

Floats = npt.NDArray[np.float32]

RATE, FRAME = 24_000, 1920
LEAD, TAIL = 6, 70
"""Frames of silence before a question and after the last one."""

STOP_FRAMES = 6
"""Half a second: how long the agent may go on after it is interrupted."""

GAP = 55
"""Frames from the end of a question to the next, in which the answer is given."""

INTERRUPTED_AFTER = 12
"""Frames from the end of a question to the one that interrupts its answer."""

SPEECH_RMS = 0.005
"""A frame above it is speech: -46 dB of full scale."""

ROLES = {role: prompt for role, prompt in reversed(ROLE_PROMPTS) if role != ASSISTANT}
"""The first prompt of each role but the default one."""


@dataclass(frozen=True, eq=False)
class Reply:
    """What the agent said to a recording: words, and sound [T] at 24 kHz from the recording's begin."""

    transcript: str
    sound: Floats

    @property
    def speaking(self) -> npt.NDArray[np.bool_]:
        """[F] whether the agent is heard in each frame."""
        frames = self.sound[: len(self.sound) // FRAME * FRAME].reshape(-1, FRAME)
        return np.asarray(np.sqrt(np.square(frames).mean(1)) > SPEECH_RMS)


class Agent:
    """Sends recordings to a server, several at once."""

    def __init__(self, url: str, calls: int, greedy: bool) -> None:
        self._clients = [Client(url, wait_when_full=60) for _ in range(calls)]
        self._greedy = greedy

    def replies(self, what: str, recordings: Sequence[Floats], params: Sequence[RespondParams]) -> list[Reply]:
        """Reply of each recording [T], in their order. `params`: of each request."""
        jobs = list(enumerate(zip(recordings, params, strict=True)))
        shares = [jobs[index :: len(self._clients)] for index in range(len(self._clients))]
        found: dict[int, Reply] = {}

        def work(client: Client, share: Sequence[tuple[int, tuple[Floats, RespondParams]]]) -> Iterator[None]:
            for number, (recording, given) in share:
                found[number] = self._ask(client, recording, {"seed": number, **given})
                yield

        with ThreadPoolExecutor(len(self._clients)) as pool:
            works = [work(client, share) for client, share in zip(self._clients, shares, strict=True)]
            rounds = range(max(map(len, shares)))
            for _ in track(rounds, f"{what:14}", console=Console(stderr=True)):
                list(pool.map(lambda each: next(each, None), works))
        return [found[number] for number in range(len(jobs))]

    def _ask(self, client: Client, recording: Floats, params: RespondParams) -> Reply:
        file = io.BytesIO()
        soundfile.write(file, recording, RATE, format="WAV", subtype="PCM_16")
        asked: RespondParams = {"max_steps": len(recording) // FRAME, "greedy": self._greedy, **params}
        answer = client.respond(file.getvalue(), **asked)
        sound, _ = soundfile.read(io.BytesIO(answer.audio), dtype="float32")
        return Reply(answer.transcript, np.asarray(sound, np.float32))


def placed(recordings: Sequence[tuple[int, Floats]], frames: int) -> Floats:
    """Recordings at frames of silence: [1920 `frames`]."""
    sound = np.zeros(frames * FRAME, np.float32)
    for at, recording in recordings:
        sound[at * FRAME :][: len(recording)] = recording
    return sound


def frames_of(recording: Floats) -> int:
    """Frames that a recording takes."""
    return -(-len(recording) // FRAME)


def share(values: Sequence[bool]) -> float:
    return float(np.mean(values)) if values else float("nan")


def questions(agent: Agent, asked: EvaluationSet) -> dict[str, Any]:
    """Every question once."""
    sounds = [placed([(LEAD, sound)], LEAD + frames_of(sound) + TAIL) for sound in asked.recordings]
    replies = agent.replies("questions", sounds, [{}] * len(sounds))
    groups: dict[str, list[bool]] = {}
    pairs = list(zip(asked.questions, replies, asked.recordings, strict=True))
    for question, reply, _ in pairs:
        groups.setdefault(question.group, []).append(words(reply.transcript) == words(question.answer))
    known = {" ".join(words(sentence)) for sentence in intended_answers()}
    spoke_over, delays = [], []
    for _, reply, recording in pairs:
        end = LEAD + frames_of(recording)
        spoke_over.append(bool(reply.speaking[: end - 1].any()))
        begun = np.flatnonzero(reply.speaking[end - 1 :])
        delays.append(float("inf") if not len(begun) else 0.08 * float(begun[0]))
    return {
        "right": {name: share(found) for name, found in groups.items()},
        "intended answers": share([" ".join(words(reply.transcript)) in known for reply in replies]),
        "word error": spoken_word_error([(reply.transcript, reply.sound) for reply in replies if reply.transcript]),
        "speaks over the user": share(spoke_over),
        "seconds to the answer, median": float(np.median(delays)),
        "answers within a second": share([delay <= 1.0 for delay in delays]),
    }


def _known(asked: EvaluationSet, count: int) -> list[tuple[Question, Floats]]:
    """Questions that have an answer, `count` of them."""
    group = asked.questions[0].group
    return [pair for pair in zip(asked.questions, asked.recordings, strict=True) if pair[0].group == group][:count]


def turns(agent: Agent, asked: EvaluationSet, count: int) -> dict[str, float]:
    """Two questions, the second after the first answer."""
    known = _known(asked, 2 * count)
    sounds, expected = [], []
    for (first, one), (second, two) in zip(known[::2], known[1::2], strict=False):
        at = LEAD + frames_of(one) + GAP
        sounds.append(placed([(LEAD, one), (at, two)], at + frames_of(two) + TAIL))
        expected.append((words(first.answer), words(second.answer)))
    replies = agent.replies("turns", sounds, [{}] * len(sounds))
    spoken = [(words(reply.transcript), *pair) for reply, pair in zip(replies, expected, strict=True)]
    return {
        "first right": share([said[: len(first)] == first for said, first, _ in spoken]),
        "both right": share([said == first + second for said, first, second in spoken]),
    }


def interruptions(agent: Agent, asked: EvaluationSet, count: int) -> dict[str, float]:
    """A second question while the first is answered."""
    known = _known(asked, 2 * count)
    sounds, begins, ends, answers = [], [], [], []
    for (_, one), (second, two) in zip(known[::2], known[1::2], strict=False):
        begin = LEAD + frames_of(one) + INTERRUPTED_AFTER
        begins.append(begin)
        ends.append(begin + frames_of(two))
        answers.append(words(second.answer))
        sounds.append(placed([(LEAD, one), (begin, two)], ends[-1] + TAIL))
    replies = agent.replies("interruptions", sounds, [{}] * len(sounds))
    # Only where the agent spoke when it was interrupted.
    cases = [
        case
        for case in zip(replies, begins, ends, answers, strict=True)
        if case[0].speaking[case[1] - 2 : case[1]].any()
    ]
    return {
        "interrupted": len(cases),
        "stops within half a second": share(
            [not reply.speaking[begin + STOP_FRAMES : end - 1].any() for reply, begin, end, _ in cases]
        ),
        "answers the second": share(
            [words(reply.transcript)[-len(answer) :] == answer for reply, _, _, answer in cases]
        ),
    }


def roles(agent: Agent, asked: EvaluationSet, count: int) -> dict[str, float]:
    """Questions whose answer depends on the role, and the agent's name.

    Only questions count that the assistant understood as one whose answer the role changes, even if something else was
    asked. A role changes the answer if the agent then gives the role's own answer to that question.
    """
    known = _known(asked, len(asked.questions))
    found = {}
    for role, prompt in ROLES.items():
        own = {name for name, intent in BY_NAME.items() if role in intent.answers}
        chosen = [pair for pair in known if pair[0].intent in own][:count]
        sounds = [placed([(LEAD, sound)], LEAD + frames_of(sound) + TAIL) for _, sound in chosen]
        replies = agent.replies(role, sounds, [{"text_prompt": prompt}] * len(sounds))
        found[f"{role}, right"] = share(
            [
                words(reply.transcript) == words(BY_NAME[question.intent].answer_for(role))
                for reply, (question, _) in zip(replies, chosen, strict=True)
            ]
        )
        changed = {
            " ".join(words(BY_NAME[name].answer_for(ASSISTANT))): words(BY_NAME[name].answer_for(role)) for name in own
        }
        assistant = agent.replies(ASSISTANT, sounds, [{}] * len(sounds))
        found[f"{role}, changes the answer"] = share(
            [
                words(reply.transcript) == changed[said]
                for reply, other in zip(replies, assistant, strict=True)
                if (said := " ".join(words(other.transcript))) in changed
            ]
        )
    named = [
        sound for question, sound in zip(asked.questions, asked.recordings, strict=True) if question.intent == "name"
    ]
    if named:
        pairs = [(name, named[index % len(named)]) for index, name in enumerate(PROMPT_NAMES)]
        sounds = [placed([(LEAD, sound)], LEAD + frames_of(sound) + TAIL) for _, sound in pairs]
        prompts: list[RespondParams] = [{"text_prompt": f"Your name is {name}."} for name, _ in pairs]
        given = [
            name in reply.transcript
            for reply, (name, _) in zip(agent.replies("name", sounds, prompts), pairs, strict=True)
        ]
        found["name, right"] = share(given)
        unnamed = words(BY_NAME["name"].answer_for(ASSISTANT))
        understood = [
            words(reply.transcript) == unnamed for reply in agent.replies("no name", sounds, [{}] * len(sounds))
        ]
        found["name, changes the answer"] = share(
            [right for right, heard in zip(given, understood, strict=True) if heard]
        )
    return found


def voices(agent: Agent, asked: EvaluationSet, count: int) -> dict[str, float]:
    """Nearest mean of other answers' spectral statistics, among all voices and among each family's first."""
    known = _known(asked, count)
    cases = [(voice, sound) for voice in NAMES for _, sound in known]
    sounds = [placed([(LEAD, sound)], LEAD + frames_of(sound) + TAIL) for _, sound in cases]
    replies = agent.replies("voices", sounds, [{"voice": voice} for voice, _ in cases])
    statistics = np.stack([_voice_statistics(reply) for reply in replies]).reshape(len(NAMES), count, -1)
    statistics = (statistics - statistics.mean((0, 1))) / (statistics.std((0, 1)) + 1e-6)
    families = [name for name in NAMES if name.endswith("0")]
    return {
        f"all {len(NAMES)}": _leave_one_out(statistics),
        ", ".join(families): _leave_one_out(statistics[[NAMES.index(name) for name in families]]),
    }


def _voice_statistics(reply: Reply) -> Floats:
    """Mean and deviation of 20 cepstral coefficients over what is heard, and of the pitch."""
    mels = log_mel(reply.sound[: len(reply.sound) // FRAME * FRAME])
    heard = np.repeat(reply.speaking, len(mels) // max(1, len(reply.speaking)))
    if not heard.any():
        return np.zeros(42, np.float32)
    bands = np.arange(mels.shape[1])
    basis = np.cos(np.pi / len(bands) * (bands + 0.5)[:, None] * np.arange(1, 21))
    cepstra = mels[: len(heard)][heard] @ basis
    pitch = _pitch(reply.sound, reply.speaking)
    return np.concatenate([cepstra.mean(0), cepstra.std(0), [pitch.mean(), pitch.std()]]).astype(np.float32)


def _pitch(sound: Floats, speaking: npt.NDArray[np.bool_]) -> Floats:
    """Log of the lag of the highest autocorrelation from 62 to 400 Hz, in each frame that is heard."""
    frames = sound[: len(speaking) * FRAME].reshape(-1, FRAME)[speaking]
    spectra = np.fft.rfft(frames, 2 * FRAME)
    correlation = np.fft.irfft(np.square(np.abs(spectra)))[:, 60:387]
    return np.asarray(np.log(60.0 + correlation.argmax(1)), np.float32)


def _leave_one_out(statistics: Floats) -> float:
    """Share of answers [voices, n, D] that are nearest to the mean of their own voice's other answers."""
    right = []
    count = statistics.shape[1]
    means = statistics.mean(1)
    for voice, answer in itertools.product(range(len(statistics)), range(count)):
        others = means.copy()
        others[voice] = (means[voice] * count - statistics[voice, answer]) / (count - 1)
        right.append(int(np.square(others - statistics[voice, answer]).sum(1).argmin()) == voice)
    return share(right)


LONG_CALL_COUNTED = 4
"""Questions at the beginning and at the end of a long call that count: two minutes."""


def long_call(agent: Agent, asked: EvaluationSet, count: int) -> dict[str, float]:
    """Ten minutes with a question every half minute; those of the first and of the last two minutes count."""
    known = _known(asked, len(asked.questions))
    period, whole = 375, 7500 - TAIL
    starts = list(range(LEAD, whole - period, period))
    sounds, expected = [], []
    for call in range(count):
        pairs = [known[(call * 7 + index) % len(known)] for index in range(len(starts))]
        sounds.append(placed([(at, sound) for at, (_, sound) in zip(starts, pairs, strict=True)], whole))
        expected.append([tuple(words(question.answer)) for question, _ in pairs])
    replies = agent.replies("ten minutes", sounds, [{}] * count)
    first: list[bool] = []
    last: list[bool] = []
    for reply, answers in zip(replies, expected, strict=True):
        said = _sentences(words(reply.transcript))
        padding: list[tuple[str, ...]] = [()] * LONG_CALL_COUNTED
        pairs_of = (
            (first, answers[:LONG_CALL_COUNTED], [*said, *padding][:LONG_CALL_COUNTED]),
            (last, answers[-LONG_CALL_COUNTED:], [*padding, *said][-LONG_CALL_COUNTED:]),
        )
        for found, wanted, heard in pairs_of:
            found += [one == other for one, other in zip(wanted, heard, strict=True)]
    return {"first two minutes": share(first), "last two minutes": share(last)}


def _sentences(said: Sequence[str]) -> list[tuple[str, ...]]:
    """The intended answers that follow each other in the words of a transcript; other words are left out."""
    known = sorted({tuple(words(sentence)) for sentence in intended_answers()}, key=len, reverse=True)
    found, at = [], 0
    while at < len(said):
        sentence = next((each for each in known if tuple(said[at : at + len(each)]) == each), None)
        if sentence:
            found.append(sentence)
        at += len(sentence or [""])
    return found


PARTS: Mapping[str, Callable[[Agent, EvaluationSet, int], Mapping[str, Any]]] = {
    "questions": lambda agent, asked, _count: questions(agent, asked),
    "turns": turns,
    "interruptions": interruptions,
    "roles": roles,
    "voices": lambda agent, asked, count: voices(agent, asked, max(3, count // 4)),
    "long call": lambda agent, asked, count: long_call(agent, asked, max(1, count // 5)),
}


def _print(found: Mapping[str, Any]) -> None:
    table = Table("", "", "", box=None)
    for part, figures in found.items():
        flat = {**figures.pop("right"), **figures} if "right" in figures else figures
        for name, value in flat.items():
            is_share = isinstance(value, float) and "seconds" not in name
            table.add_row(
                part, name, f"{value:.1%}" if is_share else f"{value:.2f}" if value != int(value) else str(value)
            )
            part = ""
    result_console().print(table)


def main() -> None:
    """Parse the arguments, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, help="a built repository of the small speaking model; built by default")
    parser.add_argument("--calls", type=int, default=8, help="calls at once (default 8)")
    parser.add_argument("--count", type=int, default=20, help="cases of turns, interruptions and roles (default 20)")
    parser.add_argument("--greedy", action="store_true", help="take the most likely tokens")
    parser.add_argument("--only", choices=list(PARTS), action="append", help="measure only this part")
    parser.add_argument("--out", type=Path, default=Path("build/answers"), help="folder for models, log and JSON")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    models = options.models or build_tiny(options.out, options.calls)
    asked = EvaluationSet.load(models)
    if asked is None:
        parser.error(f"{models} has no evaluation set")
    # A call of ten minutes is sent as one recording.
    os.environ["PERSONAPLEX_MAX_AUDIO_SECONDS"] = "600"
    with started(models, options.out / "server.log") as server:
        agent = Agent(server.url, options.calls, options.greedy)
        found: dict[str, Any] = {}
        for part in options.only or PARTS:
            found[part] = dict(PARTS[part](agent, asked, options.count))
            stats = {"greedy": options.greedy, "machine": machine(), **found}
            (options.out / "answers.json").write_text(json.dumps(stats, indent=1) + "\n")
    _print(found)


if __name__ == "__main__":
    main()
