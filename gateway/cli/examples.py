"""Examples that `--help` shows at the end of a command."""

from __future__ import annotations

EXAMPLES = {
    "download": ["HF_TOKEN=… personaplex download personaplex-7b-v1"],
    "tiny": ["personaplex tiny build/tiny", "personaplex tiny build/random --random --seed 1"],
    "build": [
        "personaplex build build/tiny build/models",
        "personaplex build personaplex-7b-v1 models --variant int4 --slots 2",
        "personaplex build personaplex-7b-v1 models --device cuda --variant bf16 --slots 32",
    ],
    "evaluate": ["personaplex evaluate models-int8 models-int4 --against models-fp32"],
    "serve": [
        "personaplex serve build/models",
        "personaplex serve models --host 0.0.0.0 --tls-certificate cert.pem --tls-key key.pem",
        "personaplex serve models --triton gpu-host:8000 --warm NATF0 --drain 600",
    ],
    "respond": [
        "personaplex respond --input question.wav --output answer.wav",
        "personaplex respond -i question.wav -o answer.wav --voice NATM1 --text-prompt 'You are Ana.'",
        "personaplex respond -i question.wav --json --greedy --models build/models",
        "arecord -f S16_LE -r 24000 -d 5 | personaplex respond -i - --stream | aplay",
    ],
    "demo": ["personaplex demo", "personaplex demo --input question.wav --output answer.wav"],
    "key": ["personaplex key keys.json acme --conversations 20 --per-minute 60"],
    "config": ["personaplex config --changed", "PERSONAPLEX_PORT=9000 personaplex config --json"],
    "doctor": ["personaplex doctor", "personaplex doctor models --port 9000 --json"],
}
"""Command lines by the name of the command."""


def epilog(command: str) -> str:
    """Return the examples of a command as Markdown."""
    return "Examples:\n\n```sh\n" + "\n".join(EXAMPLES[command]) + "\n```"
