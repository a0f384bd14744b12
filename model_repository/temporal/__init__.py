"""The temporal transformer: 17 tokens of a column in, its hidden state and the next column's text token out."""
