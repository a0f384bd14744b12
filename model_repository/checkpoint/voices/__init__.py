"""The voices of a checkpoint."""

VOICES_FOLDER = "voices"
