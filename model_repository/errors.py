"""What can go wrong between a checkpoint and a served repository.

ModelRepositoryError
├── CheckpointError      a checkpoint lacks something, or holds something unexpected
├── DownloadError        a checkpoint cannot be fetched
├── BuildError           a repository cannot be written where it was asked for
└── EvaluationError      repositories cannot be compared, or one of them does not run
"""

from __future__ import annotations


class ModelRepositoryError(Exception):
    """Base of this package's errors; the message is one line made for people."""


class CheckpointError(ModelRepositoryError):
    """A checkpoint's file, tensor or value is missing or not what was expected."""


class DownloadError(ModelRepositoryError):
    """A checkpoint cannot be fetched from where it is published."""


class BuildError(ModelRepositoryError):
    """A model repository cannot be written."""


class EvaluationError(ModelRepositoryError):
    """Model repositories that cannot be compared, or one that does not run."""
