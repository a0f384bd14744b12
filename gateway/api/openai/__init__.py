"""The OpenAI APIs: clients of OpenAI's speech-to-speech services connect unchanged."""
