"""What hostile servers still learn: the attacks that may succeed, by name, each with its reason. No other may."""

from collections.abc import Mapping

KNOWN: Mapping[str, str] = {
    "one patient more: means of looks before and after": (
        "answers over two cohorts that differ by one patient tell how its scan looks (51 numbers, no image). "
        "A hospital that does not want this sets `embedding_statistics = false`, or ingests patients in groups."
    ),
}
