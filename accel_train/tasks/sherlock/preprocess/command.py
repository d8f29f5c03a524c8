"""``accel-train sherlock preprocess``: scans, movies, annotations and features to arrays with a row per TR.

The stimulus is stored once, the brain once per viewer, memory-mapped. Where files differ in length, the end is cut off
and said; nothing is stretched. Voxels and all statistics are those of the TRs for training. Any number of processes
(--workers), ranks (accelerate launch) and jobs (--shard) share the work; what was killed goes on when it is called
again. OUT appears by one rename when all of it is written; until then its parts are in .OUT.preprocess beside it.

Files and folders belong to the run whose name stands in theirs, or are given as RUN=FILE.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from accel_train.command import Parser
from accel_train.data import preprocess
from accel_train.data.units import plain_hash, state_of
from accel_train.data.work_folder import WorkFolder
from accel_train.errors import UserError
from accel_train.tasks.sherlock.data import VERSION
from accel_train.tasks.sherlock.describe import summary
from accel_train.tasks.sherlock.preprocess import confounds, inputs, mel
from accel_train.tasks.sherlock.preprocess.finish import Job, roi_names
from accel_train.tasks.sherlock.preprocess.job import prepare
from accel_train.tasks.sherlock.preprocess.scan import MOST_TR_S, Setup
from accel_train.tasks.sherlock.preprocess.sources import Features, Sound, Source, Text, Video

MOVIES, SOUNDS = (".mp4", ".m4v", ".mkv", ".mov", ".avi", ".webm"), (".wav", ".flac", ".mp3", ".m4a", ".aac", ".ogg")
CONFOUNDS = ("confounds_timeseries.tsv", "confounds_regressors.tsv", "confounds.tsv")
"""How fMRIPrep calls its tables, now and formerly."""
TABLES, ARRAYS = (".xlsx", ".tsv", ".csv"), (".npy", ".h5", ".hdf5")
FROM_MOVIE = "movie"
RUN = "run1"
"""The only run where none is named."""


def add_arguments(parser: Parser) -> None:
    def many(name: str, metavar: str, help: str, default: Any = ()) -> None:
        parser.add_argument(f"--{name}", nargs="+", metavar=metavar, default=default, help=help)

    parser.add_argument("--out", type=Path, required=True, help="the folder to make")
    parser.add_argument("--fmri", nargs="+", metavar="PATH", required=True, help="4-D NIfTI of each viewer (sub-01 or "
                        "s1 in the name), with all runs in one file, or one file for each")  # fmt: skip
    many("runs", "NAME[=TRS]", "runs in order; TRS are needed where a file holds several")
    many("video", "[RUN=]PATH", "movies")
    many("audio", "[RUN=]PATH", f"sounds; {FROM_MOVIE!r}: those of --video")
    many("annotations", "[RUN=]PATH", ".xlsx, .tsv or .csv; a table of all runs, whose clock begins again, or one each")
    many("features", "NAME=FOLDER", ".npy or HDF5 of each run: [rows, ...] with a row per TR, or with a rate")
    many("feature_rate", "NAME=HZ", "rows a second of features (default: what the file says, else one per TR)")
    many("layer", "NAME=DATASET", "which data set of HDF5 features")
    parser.add_argument("--tr", type=float, help="seconds of a volume, whatever headers say")
    parser.add_argument("--preshift", type=int, default=0, help="TRs by which volumes were moved earlier (default 0)")
    many("subjects", "NAME", "only these viewers, in this order", None)
    many("held_out_subjects", "NAME", "viewers of whom nothing is used in training")
    many("test", "RUN[:FIRST-LAST]", "TRs for testing, to below LAST (default: the last of several runs)", None)
    many("validation", "RUN:FIRST-LAST", "as --test, or a share at the end of training (default 0.15)", ["0.15"])
    parser.add_argument("--gap", type=int, default=21, help="TRs between training and what is held out (default 21)")
    parser.add_argument("--drop_start", type=int, default=0, help="TRs at the start of runs that no split has")
    many("confounds", "[RUN=]PATH", "tables of fMRIPrep, of each run of each viewer, to regress out of the volumes")
    many("confound_columns", "NAME", f"which columns; * is anything (default {' '.join(confounds.COLUMNS)})", None)
    parser.add_argument("--mask", type=Path, help="image of the voxels to keep at most")
    parser.add_argument("--rois", type=Path, help="label image on the same grid; names in a .tsv (index, name) beside")
    parser.add_argument("--parcels", action="store_true", help="the mean of each label of --rois in place of voxels")
    parser.add_argument("--frames", type=int, default=3, help="of the movie in a TR (default 3)")
    parser.add_argument("--frame_size", default="64x36", metavar="WxH", help="pixels (default 64x36)")
    parser.add_argument("--audio_frames", type=int, default=6, help="mel spectra in a TR (default 6)")
    parser.add_argument("--mels", type=int, default=40, help="bands of a mel spectrum (default 40)")
    parser.add_argument("--text_dim", type=int, default=256, help="numbers of hashed text (default 256)")
    many("text_columns", "NAME", "columns of the annotations (default: the details, or text)", None)
    parser.add_argument("--text_model", type=Path, help="folder of static vectors or a sentence-transformers model")
    preprocess.add_sharing(parser)


def run(options: argparse.Namespace) -> int:
    """Preprocess; prints a summary, and what was found to stderr."""
    for name, least in (("gap", 0), ("preshift", 0), ("drop_start", 0), ("frames", 1),
                        ("audio_frames", 1), ("mels", 1), ("text_dim", 1)):  # fmt: skip
        if getattr(options, name) < least:
            raise UserError(f"preprocess: --{name} must be {least} or more")
    if options.tr is not None and not 0 < options.tr < MOST_TR_S:
        raise UserError(f"preprocess: --tr is in seconds, {options.tr:g} cannot be")
    setup = _setup(options)
    shard = preprocess.shard_of(options.shard)
    open_job, fill = partial(Job, setup=setup), partial(prepare, setup=setup)
    work = WorkFolder(options.out, _plan(options, setup), open_job, fill, what="pieces", shard=shard)
    return preprocess.run(work, options, summary, lambda meta: [f"found: {text}" for text in meta["found"]])


def _setup(options: argparse.Namespace) -> Setup:
    """The files of all runs. Raises ``UserError``."""
    runs = inputs.parse_runs(options.runs) or {RUN: None}
    brains = inputs.brains(options.fmri, list(runs), options.subjects)
    for name in options.held_out_subjects:
        if name not in brains:
            raise UserError(f"preprocess: --held_out_subjects: there is no {name}; there are {', '.join(brains)}")
    if len(options.held_out_subjects) >= len(brains):
        raise UserError("preprocess: --held_out_subjects leaves no viewer for training")
    sources = _sources(options, list(runs))
    if not sources:
        raise UserError("preprocess: there is no stimulus; give --video, --audio, --annotations or --features")
    if options.confound_columns is not None and not options.confounds:
        raise UserError("preprocess: --confound_columns needs the tables, --confounds")
    if options.parcels and options.rois is None:
        raise UserError("preprocess: --parcels needs the label image, --rois")
    test = options.test if options.test is not None else [*runs][-1:] if len(runs) > 1 else []
    return Setup(
        runs, brains, sources, options.tr, options.preshift, tuple(test), tuple(options.validation), options.gap,
        options.drop_start, tuple(options.held_out_subjects), options.mask, options.rois, options.parcels,
        inputs.confounds(options.confounds, list(runs), list(brains), CONFOUNDS),
        None if options.confound_columns is None else tuple(options.confound_columns),
    )  # fmt: skip


def _sources(options: argparse.Namespace, runs: list[str]) -> tuple[Source, ...]:
    found: list[Source] = []
    videos = inputs.of_runs("video", options.video, runs, MOVIES)
    if videos:
        width, times, height = options.frame_size.partition("x")
        if not (times and width.isdecimal() and height.isdecimal() and int(width) and int(height)):
            raise UserError(f"preprocess: --frame_size is WIDTHxHEIGHT, as in 64x36; not {options.frame_size!r}")
        found.append(Video(videos, options.frames, int(height), int(width)))
    if options.audio == [FROM_MOVIE] and not videos:
        raise UserError(f"preprocess: --audio {FROM_MOVIE} needs --video")
    sounds = videos if options.audio == [FROM_MOVIE] else inputs.of_runs("audio", options.audio, runs, SOUNDS)
    if sounds:
        mel.refuse_empty(options.mels)
        found.append(Sound(sounds, options.audio_frames, options.mels))
    if options.annotations:
        columns = None if options.text_columns is None else tuple(options.text_columns)
        files = _tables(options.annotations, runs)
        found.append(Text(files, options.text_dim, columns, options.text_model))
    rates, layers = inputs.pairs("feature_rate", options.feature_rate), inputs.pairs("layer", options.layer)
    for name, folder in inputs.pairs("features", options.features).items():
        if name in [source.name for source in found] or not name.isidentifier():
            raise UserError(f"preprocess: --features {name}: must be a name of letters that no other modality has")
        files = inputs.of_runs(f"features {name}", [folder], runs, ARRAYS)
        found.append(Features(name, files, _rate(name, rates.pop(name, None)), layers.pop(name, None)))
    if rates or layers:
        raise UserError(f"preprocess: there are no --features {', '.join({**rates, **layers})}")
    return tuple(found)


def _tables(texts: list[str], runs: list[str]) -> dict[str, Path]:
    """Of each run; one table that names no run is of all."""
    if len(texts) == 1 and "=" not in texts[0] and Path(texts[0]).expanduser().is_file():
        return dict.fromkeys(runs, Path(texts[0]).expanduser())
    return inputs.of_runs("annotations", texts, runs, TABLES)


def _rate(name: str, text: str | None) -> float | None:
    try:
        rate = None if text is None else float(text)
    except ValueError:
        rate = 0.0
    if rate is not None and not 0 < rate < float("inf"):
        raise UserError(f"preprocess: --feature_rate {name}={text}: rows a second, a number above 0")
    return rate


def _plan(options: argparse.Namespace, setup: Setup) -> dict[str, Any]:
    """All that decides what is written, in plain values."""
    settings = (
        "tr", "preshift", "gap", "drop_start", "parcels", "frames", "frame_size", "audio_frames", "mels", "text_dim",
        "text_columns", "feature_rate", "layer", "confound_columns",
    )  # fmt: skip
    model = options.text_model
    if model is not None and not model.is_dir():
        raise UserError(f"preprocess: --text_model: {model} is no folder")
    brains, tables = (
        {name: {run: _identity(path) for run, path in files.items()} for name, files in each.items()}
        for each in (setup.brains, setup.confounds)
    )
    stimulus = {each.name: {run: _identity(path) for run, path in each.files.items()} for each in setup.sources}
    images = {name: path and _identity(path) for name, path in (("mask", setup.mask), ("rois", setup.rois))}
    names = setup.rois and roi_names(setup.rois)
    vectors = model and [_identity(path) for path in sorted(model.rglob("*")) if path.is_file()]
    return {
        "version": VERSION,
        "runs": setup.runs,
        "subjects": list(setup.brains),
        "files": plain_hash([brains, tables, stimulus, images, names, vectors]),
        "test": setup.test,
        "validation": setup.validation,
        "held_out_subjects": setup.held_out,
        **{name: getattr(options, name) for name in settings},
    }


def _identity(path: Path) -> dict[str, Any] | None:
    """Of a file, or of a header with its image."""
    path = inputs.existing(path)
    other = path.with_suffix({".hdr": ".img", ".img": ".hdr"}.get(path.suffix, path.suffix))
    return state_of(path, *([other] if other != path and other.is_file() else []))
