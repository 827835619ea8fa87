"""Data for the chain of run files recipes/chain-*.toml: sums to answer, as a school book asks.

Writes four files into ``chain-data/``: conversations for fine-tuning, whose answers are a number or
a sentence; pairs of both, of which the number alone is preferred; answers with a label each that
says the same; and prompts with their solution for reinforcement.

    python examples/chain_data.py && ziggurat train recipes/chain-sft.toml
"""

import json
import random
from pathlib import Path

FORMS = (
    "What is {a} {sign} {b}?",
    "Compute {a} {sign} {b}.",
    "{a} {sign} {b} = ?",
    "Please work out {a} {sign} {b}.",
)
DIRECTORY = Path("chain-data")
SIZES = {"conversations": 6000, "pairs": 2000, "labelled": 2000, "prompts": 1000}


def problem(draw: random.Random) -> tuple[str, int]:
    """A question and its answer."""
    a, b = draw.randint(0, 20), draw.randint(0, 20)
    sign = draw.choice("+-")
    if sign == "-":
        a, b = max(a, b), min(a, b)
    question = draw.choice(FORMS).format(a=a, sign=sign, b=b)
    return question, a + b if sign == "+" else a - b


def record(kind: str, draw: random.Random) -> dict:
    question, answer = problem(draw)
    user = {"role": "user", "content": question}
    short, long = f"{answer}", f"The answer is {answer}."
    if kind == "pairs":
        return {"messages": [user], "chosen": short, "rejected": long}
    said = draw.choice([short, long])
    if kind == "conversations":
        return {"messages": [user, {"role": "assistant", "content": said}]}
    if kind == "labelled":
        return {"prompt": [user], "completion": said, "label": said == short}
    return {"prompt": question, "answer": f"{answer}"}


def main() -> None:
    DIRECTORY.mkdir(exist_ok=True)
    for kind, size in SIZES.items():
        draw = random.Random(kind)
        lines = [json.dumps(record(kind, draw)) + "\n" for _ in range(size)]
        path = DIRECTORY / f"{kind}.jsonl"
        path.write_text("".join(lines), encoding="utf-8")
        print(f"{path}: {size} records")


if __name__ == "__main__":
    main()
