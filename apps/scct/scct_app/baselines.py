"""Print how many questions of each kind there are, and what can be scored without a model.

``python -m scct_app.baselines``, in the app's folder.
"""

from __future__ import annotations

from collections import Counter

from flwr_splitkd.data.questions import QuestionConfig, split_questions
from flwr_splitkd.data.questions.score import baselines


def main() -> None:
    """Print both tables in Markdown."""
    split = split_questions(QuestionConfig(), 3)
    parts = {
        "public": split.public,
        **{f"device {number}": part for number, part in enumerate(split.devices)},
        "held out": split.heldout,
    }
    counts = {name: Counter(question.kind for question in part) for name, part in parts.items()}
    known = [question for part in split.devices for question in part]
    print(f"| kind | {' | '.join(parts)} |\n|---{'|---' * len(parts)}|")
    for kind in sorted({question.kind for question in known}):
        print(f"| {kind} | {' | '.join(str(count[kind]) for count in counts.values())} |")
    print(f"| all | {' | '.join(str(count.total()) for count in counts.values())} |\n")
    print("| held-out questions | F1 | exact match |\n|---|---|---|")
    for name, scores in baselines(known, split.heldout).items():
        print(f"| {name} | {scores['f1']:.1f} | {scores['exact_match']:.1f} |")


if __name__ == "__main__":
    main()
