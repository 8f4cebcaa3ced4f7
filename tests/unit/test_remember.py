"""Short texts are remembered; long ones, which come from whoever means harm, are not."""

from dicomfs.remember import remembered


def test_short_texts_alone_and_the_latest_are_remembered() -> None:
    asked: list[str] = []

    @remembered(2, 3)
    def shout(text: str) -> str:
        """Louder."""
        asked.append(text)
        return text.upper()

    assert [shout(text) for text in ("ab", "ab", "cde", "ab", "long", "long")] == [
        *("AB", "AB", "CDE", "AB", "LONG", "LONG")
    ]
    assert asked == ["ab", "cde", "long", "long"]
    assert shout("new") == "NEW"
    assert shout("cde") == "CDE", "it had to go"
    assert asked[4:] == ["new", "cde"]
    assert (shout.__name__, shout.__doc__) == ("shout", "Louder.")
