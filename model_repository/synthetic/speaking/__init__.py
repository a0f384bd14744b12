"""The recipe of the small speaking model: text, speech, codec, language model, checkpoint."""
