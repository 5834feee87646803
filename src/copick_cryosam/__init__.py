"""copick-cryosam."""
