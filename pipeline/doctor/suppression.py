"""Suppression of small counts: hide counts under the site's minimum, and counts that would reveal them.

1. A count under the minimum k is shown as "<k", including 0.
2. The parts of such a count are not listed.
3. If counts add up to a shown count, a reader can subtract. The possible values of the other counts then give a range
for each hidden count, which must contain at least half of the values that "<k" allows. Otherwise further counts are
hidden as "≥k", as few as possible.
4. A count c of n is hidden, as "<k" or "≥k", unless n is shown, and c and n - c both reach k or n - c is 0.
5. A figure shows only multiples of k, and nothing if rule 3 would not hold for the rest.

The ranges of rule 3 are exact: the sums form a tree, and one pass up and one pass down compute them.
"""

from collections.abc import Sequence
from itertools import chain, combinations

from pipeline.cohort.attrition import Count

Range = tuple[float, float]  # the smallest and largest value of a count that a reader can infer


def hidden(root: Count, minimum: int) -> set[str]:
    """Return the keys of the counts of a tree that must be hidden.

    As few as possible are hidden, sums before their parts, and exclusions last; there are at most a dozen sums.
    """
    counts = [count for _, count in root.walk()]
    small = {count.key for count in counts if count.count < minimum}
    sums = [count.key for count in counts if count.stays and count.key not in small]
    for also in chain.from_iterable(combinations(sums, size) for size in range(len(sums) + 1)):
        if not _leaks(root, small.union(also), minimum):
            return small.union(also)
    return {count.key for count in counts}


def leaks(known: Range, minimum: int) -> bool:
    """Whether a reader knows too much about a count under the minimum."""
    least, most = known
    return most < minimum and most - least < (minimum - 1) // 2


def _leaks(root: Count, keys: set[str], minimum: int) -> bool:
    """Whether any small count of the tree can be inferred too precisely if those of `keys` are hidden."""
    below = _from_below(root, keys, minimum)

    def search(total: Count, known: Range) -> bool:
        if total.key in keys and leaks(known, minimum):
            return True
        if total.count < minimum:
            return False
        parts = [below[part.key] for part in total.parts]
        return any(search(part, within(known, parts, i)) for i, part in enumerate(total.parts))

    return search(root, below[root.key])


def _from_below(total: Count, keys: set[str], minimum: int) -> dict[str, Range]:
    """Return the known range of each count, from itself and its parts."""
    known: dict[str, Range] = {}
    for part in total.parts if total.count >= minimum else ():
        known |= _from_below(part, keys, minimum)
    own: Range
    if total.key not in keys:
        own = (total.count, total.count)
    elif total.count < minimum:
        own = (0 if total.stays else 1, minimum - 1)
    else:
        parts = [known[part.key] for part in total.parts]
        least, most = sum(part[0] for part in parts), sum(part[1] for part in parts)
        own = (max(minimum, least), most) if parts else (minimum, float("inf"))
    return known | {total.key: own}


def within(total: Range, parts: Sequence[Range], i: int) -> Range:
    """Return the known range of the i-th part if the parts add up to the total."""
    others = [*parts[:i], *parts[i + 1 :]]
    least = total[0] - sum(most for _, most in others)
    most = total[1] - sum(least for least, _ in others)
    return max(parts[i][0], least), min(parts[i][1], most)


def shown(count: int, minimum: int, *, is_hidden: bool = False) -> str:
    """Format a count for others."""
    if count < minimum:
        return f"<{minimum}"
    return f"≥{minimum}" if is_hidden else str(count)


def shown_of(count: int, of: int, minimum: int, *, is_of_shown: bool) -> str:
    """Format a count that is a part of `of`, which itself may be hidden."""
    rest = of - count
    if not is_of_shown or not 0 < rest < minimum or count < minimum:
        return shown(count, minimum, is_hidden=not is_of_shown)
    # "≥k" reveals that the rest is small: at most `of` minus k.
    return "not shown" if leaks((1, min(minimum - 1, of - minimum)), minimum) else shown(count, minimum, is_hidden=True)


def rounded(count: int, minimum: int) -> int | None:
    """Round a count down to a multiple of the minimum, for a figure; None below the minimum."""
    return count // minimum * minimum or None
