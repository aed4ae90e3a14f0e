"""Which counts others may see: none under the site's minimum, nor one from which such a count would follow.

1. A count under the minimum k is shown as "<k", 0 too.
2. What such a count is made of is not listed.
3. Where counts add up to one that is shown, a reader can subtract. Then of each hidden count a range follows, from
   what the others can be; it must still hold at least half of the values that "<k" says. Where it would not, other
   counts are hidden too, as "≥k": the fewest that will do.
4. A count c of n is hidden, as "<k" or "≥k", unless c and n - c both reach k or n - c is 0, and n is shown.
5. A figure shows multiples of k alone, and nothing where rule 3 would not hold for what is left out.

The ranges of rule 3 are exact: the sums form a tree, and there one pass up and one pass down find them.
"""

from collections.abc import Sequence
from itertools import chain, combinations

from pipeline.cohort.attrition import Count

Range = tuple[float, float]  # the least and the most that a count can be, to a reader's knowledge


def hidden(root: Count, minimum: int) -> set[str]:
    """Keys of the counts of a tree that must not be shown as they are.

    As few as will do, sums before their parts, and what falls out at a rule last: there are a dozen sums at most.
    """
    counts = [count for _, count in root.walk()]
    small = {count.key for count in counts if count.count < minimum}
    sums = [count.key for count in counts if count.stays and count.key not in small]
    for also in chain.from_iterable(combinations(sums, size) for size in range(len(sums) + 1)):
        if not _leaks(root, small.union(also), minimum):
            return small.union(also)
    return {count.key for count in counts}


def leaks(known: Range, minimum: int) -> bool:
    """Whether what is known of a count under the minimum is too much."""
    least, most = known
    return most < minimum and most - least < (minimum - 1) // 2


def _leaks(root: Count, keys: set[str], minimum: int) -> bool:
    """Whether any small count of the tree follows too closely if those of `keys` are hidden."""
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
    """What is known of each count from itself and what it is made of."""
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
    """What is known of the i-th part if the parts add up to the total."""
    others = [*parts[:i], *parts[i + 1 :]]
    least = total[0] - sum(most for _, most in others)
    most = total[1] - sum(least for least, _ in others)
    return max(parts[i][0], least), min(parts[i][1], most)


def shown(count: int, minimum: int, *, is_hidden: bool = False) -> str:
    """The count as others may read it."""
    if count < minimum:
        return f"<{minimum}"
    return f"≥{minimum}" if is_hidden else str(count)


def shown_of(count: int, of: int, minimum: int, *, is_of_shown: bool) -> str:
    """A count of a part of `of`, which itself may be shown or not."""
    rest = of - count
    if not is_of_shown or not 0 < rest < minimum or count < minimum:
        return shown(count, minimum, is_hidden=not is_of_shown)
    # "≥k" tells that the rest is small, and so no more than `of` without k.
    return "not shown" if leaks((1, min(minimum - 1, of - minimum)), minimum) else shown(count, minimum, is_hidden=True)


def rounded(count: int, minimum: int) -> int | None:
    """The count as a figure may show it: the multiple of the minimum at or below it, None below the first."""
    return count // minimum * minimum or None
