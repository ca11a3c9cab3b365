"""Settings of all tests of this package."""

from hypothesis import settings

# The time that one example takes says nothing about correctness, and on a busy machine it varies a hundredfold.
settings.register_profile("ckpt", deadline=None)
settings.load_profile("ckpt")
