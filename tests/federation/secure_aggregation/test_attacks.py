"""Attacks of a server that cheats, of hospitals that help it, and of restored backups. Each must fail with its code.

The numbers are those of the threat model's page on secure aggregation. Number 11, weights that make an update reveal
single scans, is refused before a hospital trains: `tests/federation/gateway/test_lineage.py`.
"""

import functools
import itertools
import shutil
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from federation.secure_aggregation.keys import Identity
from federation.secure_aggregation.masking import PIECE_WORDS, Masks
from federation.secure_aggregation.messages import (
    Advertised,
    Advertisement,
    Confirmations,
    Sealed,
    Uploaded,
    seed_digest,
)
from federation.secure_aggregation.reply_vector import mean_of, vector
from federation.secure_aggregation.roster import Member, Roster
from federation.secure_aggregation.server_round import ServerRound
from federation.secure_aggregation.site_round import Limits, SiteRound, own_mask_key, pair_mask_key
from federation.secure_aggregation.update_checks import clip_factor
from models.refusal import Refusal
from tests.federation.secure_aggregation.rig import Rig, digest, mask, play, refused

PUBLIC = bytes.fromhex("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f")  # RFC 7748, 6.1


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path, 5)


def without(rig: Rig, *names: str) -> Uploaded:
    return Uploaded(hospitals=tuple(name for name in rig.names if name not in names))


def chi_squared(content: bytes) -> float:
    """Distance of the frequencies of bytes from uniform; 255 ± 23 for random ones."""
    counts = np.bincount(np.frombuffer(content, np.uint8), minlength=256)
    expected = len(content) / 256
    return float(np.sum((counts - expected) ** 2) / expected)


def looks_random(content: bytes) -> bool:
    return abs(chi_squared(content) - 255) < 6 * 22.6 and len(zlib.compress(content, 6)) > 0.999 * len(content)


# --- 1: both shares of one hospital -----------------------------------------------------------------------


def test_1_hospital_reveals_one_share_of_each_other_hospital(rig: Rig) -> None:
    header, dropped = rig.header(), rig.names[1]
    server = play(rig, header, {dropped: "upload"}, until="confirm")
    assert server.confirmations is not None
    for name in server.uploaded.hospitals if server.uploaded else ():
        site = rig.site(name, header)
        answers = [site.reveal(server.confirmations) for _ in range(3)]
        assert all(answer == answers[0] for answer in answers)
        assert set(answers[0].keys) == {dropped}
        assert not set(answers[0].seeds) & set(answers[0].keys)
        for other in (without(rig), without(rig, rig.names[0])):
            assert refused(lambda site=site, other=other: site.confirm(other)) == "E_SECAGG_UPLOADED_TWICE"


def test_1_nothing_is_revealed_about_an_attempt_that_was_left(rig: Rig) -> None:
    """The shares of the other kind would be collected after a new attempt has begun."""
    header = rig.header()
    server = play(rig, header, until="confirm")
    rig.site(rig.names[0], rig.header(attempt=2)).advertise()
    site = rig.site(rig.names[0], header)
    assert server.confirmations is not None and server.uploaded is not None and server.advertised is not None
    for step in (
        lambda: site.reveal(server.confirmations),
        lambda: site.confirm(server.uploaded),
        lambda: site.share(server.advertised),
        site.advertise,
    ):
        assert refused(step) == "E_SECAGG_ROUND_OLD"


# --- 2: different lists of replies ------------------------------------------------------------------------


@pytest.mark.slow
def test_2_two_lists_are_never_both_unmasked(rig: Rig) -> None:
    """The server tells some hospitals that all replied, the others that one dropped out, in every split of five."""
    for number, told_all in enumerate(itertools.product([True, False], repeat=5), start=1):
        # Studies of their own: the changes in all runs of a study are limited.
        header = rig.header(number, model=number, run=f"covid-{number}").model_copy(update={"study": digest(number)})
        server = play(rig, header, until="upload")
        lists = {True: Uploaded(hospitals=tuple(rig.names)), False: without(rig, rig.names[0])}
        signed: dict[bool, dict[str, bytes]] = {True: {}, False: {}}
        for name, all_of_them in zip(rig.names, told_all, strict=True):
            if name in lists[all_of_them].hospitals:
                signed[all_of_them][name] = rig.site(name, header).confirm(lists[all_of_them]).signature
        unmasked = []
        for which, signatures in signed.items():
            told = Confirmations(signatures=signatures)
            sites = [rig.site(name, header) for name in signatures]
            answers = [refused(lambda site=site, told=told: site.reveal(told)) for site in sites]
            if len(signatures) < 4:
                assert set(answers) <= {"E_SECAGG_TOO_FEW"}
            else:
                unmasked.append(which)
        assert len(unmasked) <= 1
        assert server.uploaded is not None


def test_2_signature_under_another_list_does_not_count(rig: Rig) -> None:
    header = rig.header()
    play(rig, header, until="upload")
    everybody, fewer = Uploaded(hospitals=tuple(rig.names)), without(rig, rig.names[4])
    signatures = {
        name: rig.site(name, header).confirm(everybody if name in rig.names[:2] else fewer).signature
        for name in rig.names[:4]
    }
    code = refused(lambda: rig.site(rig.names[0], header).reveal(Confirmations(signatures=signatures)))
    assert code == "E_SECAGG_SIGNATURE"


@pytest.mark.parametrize("count", range(3, 101))
def test_2_threshold_prevents_two_lists_with_fewer_than_a_third_colluding(count: int) -> None:
    """With c colluding hospitals, which sign everything, honest ones sign once: not enough for two lists."""
    members = tuple(Member(name=f"h-{n:03}", key=bytes([n, *range(31)])) for n in range(count))
    threshold = Roster(members=members).threshold
    for colluding in range(2 * threshold - count):
        assert 2 * (threshold - colluding) > count - colluding
    assert 2 * threshold - count > count / 3


# --- 3: different models ----------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["model", "settings"])
def test_3_hospital_that_was_told_something_else_is_noticed(rig: Rig, what: str) -> None:
    header = rig.header()
    other = header.model_copy(update={what: "f" * 64})
    signed = [rig.site(name, other if name == rig.names[2] else header).advertise() for name in rig.names]
    advertised = Advertised(hospitals=tuple(signed))
    for name in rig.names:
        told = other if name == rig.names[2] else header
        assert refused(lambda name=name, told=told: rig.site(name, told).share(advertised)) == "E_SECAGG_UNLIKE"
    relabelled = signed[2].model_copy(update={"told": header.told})  # the server hides the difference
    forged = Advertised(hospitals=(*signed[:2], relabelled, *signed[3:]))
    assert refused(lambda: rig.site(rig.names[0], header).share(forged)) == "E_SECAGG_SIGNATURE"


def test_3_masks_made_for_different_models_do_not_cancel(rig: Rig) -> None:
    """Even if a gateway did not check: the digests are in the keys of the masks."""
    private = bytes(range(32))
    keys = {
        pair_mask_key(private, PUBLIC, header, "0" * 64, "a", "b")
        for header in (
            rig.header(),
            rig.header(model=2),
            rig.header(attempt=2),
            rig.header(2),
            rig.header(run="other"),
            rig.header().model_copy(update={"settings": "e" * 64}),
            rig.header().model_copy(update={"app": "e" * 64}),
            rig.header().model_copy(update={"study": "e" * 64}),
        )
    }
    assert len(keys) == 8


# --- 4: hospitals that the server invents -----------------------------------------------------------------


def test_4_roster_that_was_not_approved_is_refused(rig: Rig) -> None:
    """The server adds two hospitals whose keys it made."""
    invented = [Member(name=f"invented-{n}", key=Identity.kept(rig.folder / f"k{n}").public) for n in range(2)]
    minted = Roster(members=(*rig.roster.members, *invented))
    header = rig.header().model_copy(update={"roster": minted.digest})
    assert minted.code != rig.roster.code
    assert refused(lambda: rig.site(rig.names[0], header)) == "E_SECAGG_ROSTER"


def test_4_hospital_outside_the_roster_cannot_advertise(rig: Rig) -> None:
    header = rig.header()
    invented = Identity.kept(rig.folder / "invented")
    advertisements = [rig.site(name, header).advertise() for name in rig.names[:4]]
    keys = {"sealing": bytes(range(32)), "masking": bytes(range(1, 33)), "seed": seed_digest(bytes(32))}
    for name, code in (("hospital-999", "E_SECAGG_MEMBER"), (rig.names[4], "E_SECAGG_SIGNATURE")):
        forged = Advertisement.signed(header, name, invented, **keys)  # type: ignore[arg-type]
        both = Advertised(hospitals=(*advertisements, forged))
        assert refused(lambda both=both: rig.site(rig.names[0], header).share(both)) == code


def test_4_server_cannot_shrink_the_round_to_hospitals_that_collude(rig: Rig) -> None:
    header = rig.header()
    advertisements = tuple(rig.site(name, header).advertise() for name in rig.names[:3])
    site = rig.site(rig.names[0], header)
    assert refused(lambda: site.share(Advertised(hospitals=advertisements))) == "E_SECAGG_TOO_FEW"


# --- 5: the same round again ------------------------------------------------------------------------------


def test_5_reply_is_masked_once_in_an_attempt(rig: Rig) -> None:
    header = rig.header()
    server = play(rig, header, until="upload")
    assert refused(lambda: mask(rig, rig.names[0], header, server)) == "E_SECAGG_MASKED"
    partial = Sealed(shares=dict(list(server.shares_for(rig.names[0]).shares.items())[:3]))
    assert refused(lambda: rig.site(rig.names[0], header).mask(partial)) == "E_SECAGG_MASKED"


def test_5_attempt_has_one_list_of_hospitals(rig: Rig) -> None:
    header = rig.header()
    advertisements = [rig.site(name, header).advertise() for name in rig.names]
    site = rig.site(rig.names[0], header)
    site.share(Advertised(hospitals=tuple(advertisements)))
    assert refused(lambda: site.share(Advertised(hospitals=tuple(advertisements[:4])))) == "E_SECAGG_STEP"


@pytest.mark.parametrize("number", [(1, 1), (2, 1), (3, 1)])
def test_5_earlier_round_and_earlier_attempt_are_over(rig: Rig, number: tuple[int, int]) -> None:
    rig.site(rig.names[0], rig.header(3, 2)).advertise()
    assert refused(rig.site(rig.names[0], rig.header(*number, model=9)).advertise) == "E_SECAGG_ROUND_OLD"


def test_5_same_number_with_another_model_is_refused(rig: Rig) -> None:
    rig.site(rig.names[0], rig.header()).advertise()
    assert refused(rig.site(rig.names[0], rig.header(model=2)).advertise) == "E_SECAGG_STEP"


def test_5_folder_restored_from_an_earlier_step_cannot_go_on(rig: Rig) -> None:
    """The backup was made before the reply was masked; the witness in memory is ahead of it."""
    header, name = rig.header(), rig.names[0]
    server = play(rig, header, until="share")
    state, backup = rig.folder / name / "state", rig.folder / "backup"
    rig.store(name).close()
    rig.stores.clear()
    shutil.copytree(state, backup)
    mask(rig, name, header, server)
    rig.stores.pop(name).close()
    shutil.rmtree(state)
    shutil.copytree(backup, state)
    assert refused(lambda: mask(rig, name, header, server)) == "E_SECAGG_LOST"
    assert refused(lambda: rig.site(name, header).confirm(Uploaded(hospitals=tuple(rig.names)))) == "E_SECAGG_LOST"
    assert np.array_equal(play(rig, rig.header(attempt=2)).unmask(), rig.plain_sum(rig.names))


def test_5_folder_restored_from_an_earlier_attempt_has_unreadable_secrets(rig: Rig) -> None:
    header, name = rig.header(), rig.names[0]
    server = play(rig, header, until="confirm")
    state, backup = rig.folder / name / "state", rig.folder / "backup"
    rig.stores.pop(name).close()
    shutil.copytree(state, backup)
    rig.site(name, rig.header(attempt=2)).advertise()
    rig.stores.pop(name).close()
    shutil.rmtree(state)
    shutil.copytree(backup, state)
    assert server.confirmations is not None
    assert refused(lambda: rig.site(name, header).reveal(server.confirmations)) == "E_SECAGG_LOST"
    assert refused(lambda: rig.site(name, header).confirm(without(rig, rig.names[1]))) == "E_SECAGG_LOST"


@pytest.mark.parametrize("until", ["advertise", "share", "upload", "confirm"])
def test_5_restart_of_the_machine_loses_the_attempt_and_no_more(rig: Rig, until: str) -> None:
    header, name = rig.header(), rig.names[0]
    play(rig, header, until=until)
    shutil.rmtree(rig.folder / name / "witness")
    assert refused(rig.site(name, header).advertise) == "E_SECAGG_LOST"
    assert np.array_equal(play(rig, rig.header(attempt=2)).unmask(), rig.plain_sum(rig.names))


def test_5_no_secret_is_readable_in_the_folder(rig: Rig) -> None:
    """A copy of the site's folder alone does not unmask anything."""
    header, name = rig.header(), rig.names[0]
    play(rig, header, until="upload")
    secrets = rig.store(name).last(header.run)
    assert secrets is not None
    own = secrets.secrets["shares"][name]
    stored = b"".join(path.read_bytes() for path in (rig.folder / name / "state").iterdir())
    assert own.encode() not in stored and bytes.fromhex(own) not in stored


# --- 6: the reply that was held back ----------------------------------------------------------------------


def test_6_held_back_reply_stays_masked_and_there_is_no_second_sum(rig: Rig) -> None:
    header, victim = rig.header(), rig.names[0]
    server = play(rig, header, until="share")
    held_back = mask(rig, victim, header, server)
    for name in rig.names[1:]:
        server.upload(name, mask(rig, name, header, server))
    uploaded = server.freeze_uploaded()
    assert refused(lambda: rig.site(victim, header).confirm(uploaded)) == "E_SECAGG_LEFT_OUT"
    for name in rig.names[1:]:
        server.confirm(name, rig.site(name, header).confirm(uploaded))
    assert server.confirmations is not None
    for name in rig.names[1:]:
        server.reveal(name, rig.site(name, header).reveal(server.confirmations))
    assert np.array_equal(server.unmask(), rig.plain_sum(rig.names[1:]))
    # The server knows the victim's masking key now, and so all of its pairs of masks; not its own mask.
    assert not np.array_equal(held_back, rig.words(victim))
    again = [refused(rig.site(name, rig.header(attempt=2)).advertise) for name in rig.names]
    assert again == ["", *["E_SECAGG_MODEL_USED"] * 4]
    assert refused(lambda: play(rig, rig.header(2))) == "E_SECAGG_MODEL_USED"


def test_6_model_is_summed_once_over_all_runs(rig: Rig) -> None:
    play(rig, rig.header())
    for header in (rig.header(run="covid-2"), rig.header(2), rig.header(attempt=2)):
        for name in rig.names:
            assert refused(rig.site(name, header).advertise) == "E_SECAGG_MODEL_USED"


def test_6_model_is_revealed_in_one_of_two_runs_that_overlap(rig: Rig) -> None:
    first, second = rig.header(), rig.header(run="covid-2")
    one, other = play(rig, first, until="confirm"), play(rig, second, until="confirm")
    assert one.confirmations is not None and other.confirmations is not None
    for name in rig.names:
        rig.site(name, first).reveal(one.confirmations)
        assert refused(lambda name=name: rig.site(name, second).reveal(other.confirmations)) == "E_SECAGG_MODEL_USED"


# --- 7 and 8: weak masks, and one mask twice --------------------------------------------------------------


def stream(key: bytes, words: int) -> NDArray[np.uint32]:
    zeros = np.zeros(words, np.uint32)
    Masks([(key, 1)]).apply(zeros)
    return zeros


def test_7_mask_is_chacha20_with_the_whole_key() -> None:
    """RFC 8439, appendix A.1, test vector 1: the first block under the zero key."""
    assert stream(bytes(32), 16).tobytes().hex().startswith("76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc")
    keys = [bytes(at) + b"\x01" + bytes(31 - at) for at in range(32)]
    assert len({stream(key, 16).tobytes() for key in keys}) == 32


def test_7_masks_of_an_attempt_and_of_attempts_differ(rig: Rig) -> None:
    replies = []
    for attempt in (1, 2, 3):
        header = rig.header(attempt=attempt)
        server = play(rig, header, until="share")
        replies += [mask(rig, name, header, server) - rig.words(name) for name in rig.names]
    assert len({reply.tobytes() for reply in replies}) == len(replies)
    words = np.concatenate(replies)
    assert len(np.unique(words)) > 0.999 * len(words)


def test_7_masked_reply_cannot_be_distinguished_from_random_bytes(tmp_path: Path) -> None:
    rig = Rig(tmp_path, 3, weights=300_000)
    server = play(rig, rig.header(), until="share")
    content = mask(rig, rig.names[0], rig.header(), server).tobytes()
    assert not looks_random(rig.words(rig.names[0]).tobytes())
    assert looks_random(content)
    assert all(looks_random(content[start::4]) for start in range(4))  # each byte of a word


def test_8_one_stream_covers_all_arrays_without_repetition() -> None:
    key = bytes(range(32))
    whole = stream(key, 3 * PIECE_WORDS + 5)
    pieces = [np.zeros(length, np.uint32) for length in (7, PIECE_WORDS, 2 * PIECE_WORDS - 2)]
    masks = Masks([(key, 1)])
    for piece in pieces:
        masks.apply(piece)
    assert np.array_equal(np.concatenate(pieces), whole)
    blocks = whole[: 16 * (len(whole) // 16)].reshape(-1, 16)
    assert len(np.unique(blocks, axis=0)) == len(blocks)


def test_8_own_mask_and_masks_of_pairs_have_different_keys(rig: Rig) -> None:
    secret, header = bytes(range(32)), rig.header()
    keys = [
        own_mask_key(secret, header, "0" * 64, "a"),
        own_mask_key(secret, header, "0" * 64, "b"),
        own_mask_key(secret, header, "1" * 64, "a"),
        pair_mask_key(secret, PUBLIC, header, "0" * 64, "a", "b"),
        pair_mask_key(secret, PUBLIC, header, "0" * 64, "a", "c"),
    ]
    assert len(set(keys)) == 5
    assert keys[3] == pair_mask_key(secret, PUBLIC, header, "0" * 64, "b", "a")


# --- 9: hospitals that change between rounds --------------------------------------------------------------


def test_9_roster_that_differs_by_one_needs_an_approval(rig: Rig) -> None:
    smaller = Roster(members=rig.roster.members[1:])
    header = rig.header(2, model=2).model_copy(update={"roster": smaller.digest})
    assert refused(lambda: rig.site(rig.names[1], header)) == "E_SECAGG_ROSTER"


def test_9_changes_of_the_sum_are_counted_and_limited(tmp_path: Path) -> None:
    rig = Rig(tmp_path, 5, limits=Limits(max_changes=2))
    play(rig, rig.header(1, model=1))
    assert "hospitals of the sum changed" not in rig.notes
    play(rig, rig.header(2, model=2), {rig.names[0]: "upload"})
    play(rig, rig.header(3, model=3), {rig.names[0]: "advertise"})  # the same hospitals as before
    play(rig, rig.header(4, model=4), {rig.names[1]: "upload"})
    assert rig.notes.count("hospitals of the sum changed") == 4 + 4
    with pytest.raises(Refusal, match="E_SECAGG_CHANGES"):
        play(rig, rig.header(5, model=5), {rig.names[2]: "upload"})


def test_9_changes_are_counted_over_the_runs_of_a_study(tmp_path: Path) -> None:
    """A server can begin new runs of a study that was approved, each with nearly the same model."""
    rig = Rig(tmp_path, 5, limits=Limits(max_changes=2))
    for number in (1, 2):
        play(rig, rig.header(2, model=number, run=f"covid-{number}"), {rig.names[0]: "upload"})
    with pytest.raises(Refusal, match="E_SECAGG_CHANGES"):
        play(rig, rig.header(2, model=3, run="covid-3"), {rig.names[0]: "upload"})
    play(rig, rig.header(2, model=3, run="covid-4"))


# --- 10: updates in which most weights do not move --------------------------------------------------------


def test_10_sparse_update_is_refused() -> None:
    dense = np.full(1000, 0.01)
    sparse = np.where(np.arange(1000) < 210, 0.0, dense)
    assert clip_factor([dense], longest=10, weights=1000) == 1.0
    with pytest.raises(Refusal, match=r"E_SECAGG_SPARSE.*21 %"):
        clip_factor([sparse[:500], sparse[500:]], longest=10, weights=1000)
    assert clip_factor([sparse], longest=10, weights=1000, fixed=[(0, 210)]) == 1.0
    assert refused(lambda: clip_factor([np.zeros(1000)], longest=10, weights=1000)) == "E_SECAGG_SPARSE"


def test_10_rounding_that_leaves_only_the_largest_hospital_is_refused(rig: Rig) -> None:
    """The server allows such long updates that those of small hospitals are rounded to nothing."""
    changes, patients = np.full(rig.weights, 1e-3), min(reply.patients for reply in rig.replies.values())
    fair, huge = rig.settings, rig.settings.model_copy(update={"longest": 1e8})
    for settings, code in ((fair, ""), (huge, "E_SECAGG_SPARSE")):
        words = np.concatenate(list(vector(replace(rig.replies[rig.names[0]], changes=[changes]), settings)))
        assert bool(np.any(words[-rig.weights :])) is not bool(code)
        least = settings.least(patients)
        check = functools.partial(clip_factor, [changes], longest=settings.longest, weights=rig.weights, least=least)
        assert refused(check) == code


def test_10_long_update_is_clipped_by_its_own_gateway() -> None:
    assert clip_factor([np.full(100, 1.0)], longest=5.0, weights=100) == pytest.approx(0.5)
    assert refused(lambda: clip_factor([np.array([np.nan])], longest=5.0, weights=1)) == "E_SECAGG_RANGE"
    assert refused(lambda: clip_factor([np.array([1e200])], longest=5.0, weights=1)) == "E_SECAGG_RANGE"


# --- 12: all other hospitals help the server --------------------------------------------------------------


def test_12_all_other_hospitals_together_learn_the_update_of_one(rig: Rig) -> None:
    """This succeeds, and no protocol for sums can prevent it: the threat model says so."""
    total = play(rig, rig.header()).unmask()
    victim = rig.names[0]
    assert np.array_equal(total - rig.plain_sum(rig.names[1:]), rig.words(victim))


def test_12_a_third_of_the_hospitals_with_the_server_learn_the_sum_of_the_others_only(rig: Rig) -> None:
    """Two of five tell the server all that they know; of the three others it has three masked replies and their sum."""
    header, honest = rig.header(), rig.names[2:]
    server = play(rig, header, until="share")
    replies = {name: mask(rig, name, header, server) for name in rig.names}
    known = {name: rig.store(name).last(header.run) for name in rig.names[:2]}
    assert all(attempt is not None for attempt in known.values())
    shares = {of for attempt in known.values() if attempt for of in attempt.secrets["shares"]}
    assert shares == set(rig.names) and rig.roster.threshold > len(known)  # of each, fewer shares than needed
    for name, reply in replies.items():
        server.upload(name, reply)
    total = finish(rig, server)
    others = total - rig.plain_sum(rig.names[:2])
    assert np.array_equal(others, rig.plain_sum(honest))
    assert mean_of(total, rig.settings, 5).patients == rig.settings.patients


def finish(rig: Rig, server: ServerRound) -> NDArray[np.uint32]:
    uploaded = server.freeze_uploaded()
    for name in uploaded.hospitals:
        server.confirm(name, rig.site(name, server.header).confirm(uploaded))
    assert server.confirmations is not None
    for name in uploaded.hospitals:
        server.reveal(name, rig.site(name, server.header).reveal(server.confirmations))
    return server.unmask()


# --- messages ---------------------------------------------------------------------------------------------


def test_share_that_the_server_changed_or_swapped_is_refused(rig: Rig) -> None:
    header = rig.header()
    server = play(rig, header, until="share")
    shares = dict(server.shares_for(rig.names[0]).shares)
    one, two = rig.names[1], rig.names[2]
    swapped = {**shares, one: shares[two], two: shares[one]}
    changed = {**shares, one: shares[one][:-1] + bytes([shares[one][-1] ^ 1])}
    of_another = {**shares, two: server.shares_for(one).shares[two]}
    for wrong in (swapped, changed, of_another):
        sealed = Sealed(shares=wrong)
        assert refused(lambda sealed=sealed: rig.site(rig.names[0], header).mask(sealed)) == "E_SECAGG_SHARE"
    assert refused(lambda: rig.site(rig.names[0], header).mask(Sealed(shares={}))) == "E_SECAGG_TOO_FEW"


def test_lists_of_a_round_hold_only_its_hospitals(rig: Rig) -> None:
    header = rig.header()
    play(rig, header, {rig.names[4]: "share"}, until="upload")
    site = rig.site(rig.names[0], header)
    assert refused(lambda: site.confirm(Uploaded(hospitals=tuple(rig.names)))) == "E_SECAGG_MEMBER"
    assert refused(lambda: site.confirm(without(rig, rig.names[3], rig.names[4]))) == "E_SECAGG_TOO_FEW"


def test_public_key_of_small_order_is_refused(rig: Rig) -> None:
    header = rig.header()
    keys = {"sealing": bytes(32), "masking": bytes(32), "seed": seed_digest(bytes(32))}
    bad = Advertisement.signed(header, rig.names[4], rig.identities[rig.names[4]], **keys)  # type: ignore[arg-type]
    advertised = Advertised(hospitals=(*(rig.site(name, header).advertise() for name in rig.names[:4]), bad))
    assert refused(lambda: rig.site(rig.names[0], header).share(advertised)) == "E_SECAGG_MESSAGE"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b'{"hospitals": 1}',
        b'{"hospitals": ["b", "a"]}',
        b'{"hospitals": ["a", "a"]}',
        b'{"hospitals": ["a"], "more": 1}',
        b'{"hospitals": ["' + b"a" * 70 + b'"]}',
        b'{"hospitals": ' + b"[" * 100_000,
        b" " * 200_000,
    ],
)
def test_malformed_message_is_refused(content: bytes) -> None:
    assert refused(lambda: Uploaded.parse(content)) == "E_SECAGG_MESSAGE"


def test_steps_cannot_be_skipped(rig: Rig) -> None:
    header = rig.header()
    site = rig.site(rig.names[0], header)
    for step in (
        lambda: site.share(Advertised(hospitals=())),
        lambda: site.mask(Sealed(shares={})),
        lambda: site.confirm(Uploaded(hospitals=())),
        lambda: site.reveal(Confirmations(signatures={})),
    ):
        assert refused(step) == "E_SECAGG_STEP"
    site.advertise()
    assert refused(lambda: site.reveal(Confirmations(signatures={}))) == "E_SECAGG_STEP"
    assert isinstance(site, SiteRound)


def test_damaged_identity_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "secagg"
    first = Identity.kept(path)
    assert Identity.kept(path).public == first.public
    assert path.stat().st_mode & 0o077 == 0
    path.write_bytes(b"short")
    assert refused(lambda: Identity.kept(path)) == "E_SECAGG_IDENTITY"
