"""What all tests share: properties are not judged by the clock, since machines may be busy."""

from hypothesis import settings

settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")
