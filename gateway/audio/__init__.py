"""Audio codecs, resampling and loudness, over libsndfile, soxr, libopus and pyloudnorm."""
