"""Language: the one switch for the language in which widgets, cards and pictures speak."""

from __future__ import annotations

from labkit.checks import one_of
from labkit.translation.translate import LANGUAGES, speak, spoken


def language(name: str | None = None) -> str:
    """Turn widgets, cards, quiz, checks and pictures to "en" or to "zh" (中文); tell which is on, also without a name.

    It counts for what is made from then on, and a widget stays in the language it was made in. The environment
    variable LABKIT_LANGUAGE has the one to begin with. What no table translates stays English, and so do errors, so
    that they can be looked up and asked about. Raises SettingError for a language that there is not.

    >>> language("zh"), language(), language("en")
    ('zh', 'zh', 'en')
    """
    if name is not None:
        speak(one_of(name, "language", LANGUAGES))
    return spoken()
