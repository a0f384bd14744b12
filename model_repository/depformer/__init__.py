"""The depth transformer: a hidden state and a text token in, the agent's 8 codes of the next column out."""
