"""Audio files in and out: thin covers over libsndfile, soxr and pyloudnorm."""
