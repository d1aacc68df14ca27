"""Mixtures of corpora: which shares they have, on ranks and after an interruption, and what is refused."""

import itertools
from collections import Counter
from pathlib import Path

import pytest
from jsonargparse import ArgumentParser

from tests.trainers.recordings import write_recordings
from tests.trainers.test_audio_data import ready
from tests.trainers.test_folder_data import names, stream
from tests.trainers.test_sampler import Keys, on_rank, take
from trainers.audio import AudioFolderData, Corpus, LoudnessNormalization, PhaseShift
from trainers.data.order import Part, pass_keys, shares, shuffled
from trainers.data.sampler import TrainingLoader

PARTS = [Part(samples=7, drawn=20), Part(samples=100, drawn=50), Part(samples=1, drawn=3)]


def of_part(sample: int) -> int:
    """To which of `PARTS` a sample belongs."""
    return [sample < 7, sample < 107, sample < 108].index(True)


# ---- the order


@pytest.mark.parametrize(
    ("weights", "total", "expected"),
    [((1, 1), 10, [5, 5]), ((1, 1, 1), 10, [4, 3, 3]), ((0.7, 0.2, 0.1), 9, [6, 2, 1]), ((1, 1000), 10, [0, 10])],
)
def test_shares_are_the_nearest_whole_numbers(weights, total, expected):
    assert shares(weights, total) == expected


def test_one_part_is_its_permutation():
    for epoch in range(2):
        keys = pass_keys([Part(30, 30)], seed=4, epoch=epoch)
        assert keys[:, 0].tolist() == [epoch] * 30
        assert keys[:, 1].tolist() == shuffled(30, seed=4, epoch=epoch).tolist()


def test_every_part_is_gone_through_by_itself_pass_after_pass():
    stream_of_keys = [tuple(key) for epoch in range(8) for key in pass_keys(PARTS, seed=1, epoch=epoch).tolist()]
    assert len(set(stream_of_keys)) == len(stream_of_keys) == 8 * 73
    for number, (part, first) in enumerate(zip(PARTS, (0, 7, 107), strict=True)):
        mine = [key for key in stream_of_keys if of_part(key[1]) == number]
        assert len(mine) == 8 * part.drawn
        for own_pass, whole in itertools.groupby(mine, key=lambda key: key[0]):
            order = [sample - first for _, sample in whole]
            expected = shuffled(part.samples, seed=1, epoch=own_pass, part=number).tolist()
            assert order == expected[: len(order)]  # all of it, but for the last


def test_the_shares_hold_anywhere_in_a_pass():
    for epoch in range(3):
        keys = pass_keys(PARTS, seed=2, epoch=epoch)
        counts = Counter()
        for place, (_, sample) in enumerate(keys.tolist(), start=1):
            counts[of_part(sample)] += 1
            for number, part in enumerate(PARTS):
                share = part.drawn / len(keys)
                assert abs(counts[number] - place * share) <= 1 + share * len(PARTS)
        assert [counts[number] for number in range(3)] == [20, 50, 3]


def test_ranks_join_to_the_stream_of_one_process_which_is_continued_exactly(monkeypatch):
    def mixed(batch_size: int) -> TrainingLoader:
        return TrainingLoader(Keys(108), batch_size=batch_size, seed=5, parts=PARTS)

    whole = [batch[:, :2].tolist() for batch in take(mixed(8), 20)]
    resumed = mixed(8)
    first = mixed(8)
    take(first, 11)
    resumed.load_state_dict(first.state_dict())
    assert [batch[:, :2].tolist() for batch in take(resumed, 9)] == whole[11:]
    ranks = []
    for rank in range(2):
        on_rank(monkeypatch, rank, 2)
        ranks.append([batch[:, :2].tolist() for batch in take(mixed(4), 20)])
    assert [one + other for one, other in zip(*ranks, strict=True)] == whole


def test_other_shares_are_announced_on_resume():
    first = TrainingLoader(Keys(108), batch_size=8, seed=5, parts=PARTS)
    other = TrainingLoader(Keys(108), batch_size=8, seed=5, parts=[Part(7, 21), Part(100, 49), Part(1, 3)])
    with pytest.warns(UserWarning, match=r"parts=\[\[7, 20\], .* of training data, this run has \[\[7, 21\]"):
        other.load_state_dict(first.state_dict())


def test_parts_are_all_samples():
    with pytest.raises(ValueError, match="expected all 109 samples of the data set"):
        TrainingLoader(Keys(109), batch_size=8, seed=5, parts=PARTS)


# ---- recordings


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Three corpora of 4, 8 and 6 recordings of about a second: a folder, another, and one whose list divides it."""
    made = tmp_path_factory.mktemp("corpora")
    write_recordings(made / "speech", 4, seed=0)
    write_recordings(made / "music/deep", 8, seed=10)
    write_recordings(made / "noise", 6, seed=20)
    write_recordings(made / "held_out", 2, seed=30)
    lines = [f"noise/{number:03d}.wav,{'train' if number else 'validation'}" for number in range(6)]
    (made / "noise.csv").write_text("\n".join(["path,split", *lines]) + "\n")
    return made


def mixture(folder: Path, *weights: float | None, **options) -> AudioFolderData:
    speech, music, noise = weights
    corpora = [
        Corpus(str(folder / "speech"), weight=speech),
        Corpus(str(folder / "music"), validation_root=str(folder / "held_out"), weight=music),
        Corpus(manifest=str(folder / "noise.csv"), weight=noise),
    ]
    return ready(None, corpora=corpora, **options)


def test_a_pass_has_the_shares_of_the_weights(folder):
    audio = mixture(folder, 2.0, 1.0, 1.0)
    loader = audio.train_dataloader()
    taken = Counter(name.split("/")[0] for name in names(loader))
    assert sum(taken.values()) == loader.samples // 4 * 4
    for corpus, share in (("speech", 0.5), ("music", 0.25), ("noise", 0.25)):
        assert abs(taken[corpus] - share * loader.samples) < 3, "what fills no batch at the end"
    assert "of the segments 50.0% of " in audio.describe()


def test_without_weights_a_corpus_has_the_share_of_its_sound(folder):
    audio = mixture(folder, None, None, None)
    assert [part.drawn for part in audio.train_dataloader().parts] == [len(audio.train_dataloader().dataset)]
    taken = Counter(name.split("/")[0] for name in names(audio.train_dataloader()))
    assert taken["music"] > 1.5 * taken["noise"] > 1.5 * taken["speech"] * 0.9


def test_each_corpus_validates_by_itself(folder):
    audio = mixture(folder, 1.0, 1.0, 1.0)
    validation = set(names(audio.val_dataloader()))
    assert {"held_out/000.wav", "held_out/001.wav", "noise/000.wav"} < validation
    assert sum(name.startswith("speech/") for name in validation) == len(validation) - 3 >= 1
    _, seen = stream(audio, "audio", 60)
    assert not validation & set(seen)
    audio.setup("predict")
    assert len(names(audio.predict_dataloader())) == 18


def test_a_file_that_fails_is_replaced_by_one_of_its_corpus(folder):
    segments = mixture(folder, 1.0, 1.0, 1.0).train_dataloader().dataset
    for first, file in enumerate(segments.store.files):
        candidates = segments.replacements(first)
        assert candidates[0] == file
        assert {other.name for other in candidates} == {
            other.name for other in segments.store.files if other.corpus == file.corpus
        }


def test_a_configuration_lists_corpora_and_transforms(folder):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(AudioFolderData, "data")
    config = {
        "class_path": "trainers.audio.AudioFolderData",
        "init_args": {
            "corpora": [
                {"root": str(folder / "speech"), "weight": 3.0},
                {"manifest": str(folder / "noise.csv"), "weight": 1.0},
            ],
            "transforms": [
                {"class_path": "trainers.audio.LoudnessNormalization"},
                {"class_path": "trainers.audio.PhaseShift", "init_args": {"radians": [-1.0, 1.0]}},
            ],
        },
    }
    made = parser.instantiate(parser.parse_object({"data": config})).data
    assert made.root == folder and [corpus.weight for corpus in made._corpora.corpora] == [3.0, 1.0]
    assert [type(transform) for transform in made.transforms] == [LoudnessNormalization, PhaseShift]
    assert made.transforms[1].radians == (-1.0, 1.0)


@pytest.mark.parametrize(
    ("corpora", "message"),
    [
        ([], "corpora is empty: list at least one"),
        ([{}], "Give either root or manifest, got root=None and manifest=None"),
        ([{"root": "speech", "manifest": "noise.csv"}], "Give either root or manifest"),
        ([{"root": "elsewhere"}], r"root='.*elsewhere' is not a folder"),
        ([{"manifest": "elsewhere.csv"}], r"manifest='.*elsewhere.csv' is not a file"),
        ([{"root": "speech", "validation_root": "elsewhere"}], r"validation_root='.*elsewhere' is not a folder"),
        ([{"root": "speech", "weight": 0.0}], r"weight=0.0 of .*speech: expected a positive number"),
        ([{"root": "speech", "weight": 1.0}, {"root": "music"}], "music have no weight, others do"),
        ([{"root": "music"}, {"root": "music/deep"}], "one within the other"),
        ([{"root": "music"}, {"root": "speech", "validation_root": "music/deep"}], "one within the other"),
        ([{"manifest": "noise.csv", "validation_root": "speech"}], "gives a split, and validation_root="),
    ],
)
def test_wrong_corpora_are_refused(folder, corpora, message):
    paths = ("root", "manifest", "validation_root")
    with pytest.raises(ValueError, match=message):
        AudioFolderData(
            corpora=[
                Corpus(**{name: str(folder / value) if name in paths else value for name, value in corpus.items()})
                for corpus in corpora
            ]
        )


def test_corpora_stand_alone_and_share_no_recording(folder):
    corpora = [Corpus(str(folder / "noise")), Corpus(manifest=str(folder / "noise.csv"))]
    with pytest.raises(ValueError, match="Give corpora alone, got root='somewhere'"):
        AudioFolderData("somewhere", corpora=corpora)
    with pytest.raises(ValueError, match=r"noise/000.wav is in two corpora, .*noise and .*noise.csv: leave it in one"):
        AudioFolderData(corpora=corpora).setup("fit")
    with pytest.raises(ValueError, match=r"weight=1e-09 of corpus 1 \(from 0\) is less than one of the 16 segments"):
        corpora = [Corpus(str(folder / "speech"), weight=1.0), Corpus(str(folder / "noise"), weight=1e-9)]
        AudioFolderData(corpora=corpora, segment_seconds=0.5).setup("fit")
