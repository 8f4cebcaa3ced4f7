"""Pages of folders that were handed out (`pages.py`)."""

from dicomfs.pages import Pages


def test_a_page_is_found_by_folder_and_cookie() -> None:
    pages: Pages[str] = Pages(100)
    assert pages.get("a", 0, 1) is None
    pages.keep("a", 0, ["x", "y"])
    pages.keep("b", 0, ["z"])
    pages.keep("a", 7, [])
    assert pages.get("a", 0, 1) == ["x", "y"]
    assert pages.get("b", 0, 1) == ["z"]
    assert pages.get("a", 7, 1) == []
    assert pages.get("b", 7, 1) is None


def test_another_version_finds_nothing() -> None:
    pages: Pages[str] = Pages(100)
    pages.get("a", 0, 1)
    pages.keep("a", 0, ["x"])
    assert pages.get("a", 0, 2) is None
    assert pages.get("a", 0, 1) is None  # nor does the former one, when it comes back


def test_they_are_bounded_by_names_and_what_was_used_last_stays() -> None:
    pages: Pages[str] = Pages(10)
    pages.get("a", 0, 1)
    pages.keep("a", 0, ["x"] * 4)
    pages.keep("b", 0, ["x"] * 4)
    assert pages.get("a", 0, 1)
    pages.keep("c", 0, ["x"] * 4)
    assert pages.get("b", 0, 1) is None
    assert pages.get("a", 0, 1)
    pages.keep("d", 0, ["x"] * 10)  # larger than all of it: not kept, and pushes nothing out
    assert pages.get("d", 0, 1) is None
    assert pages.get("a", 0, 1)


def test_empty_pages_count_too() -> None:
    pages: Pages[str] = Pages(10)
    pages.get(0, 0, 1)
    for folder in range(100):
        pages.keep(folder, 0, [])
    assert sum(pages.get(folder, 0, 1) is not None for folder in range(100)) == 10


def test_all_can_be_forgotten() -> None:
    pages: Pages[str] = Pages(10)
    pages.get("a", 0, 1)
    pages.keep("a", 0, ["x"])
    pages.clear()
    assert pages.get("a", 0, 1) is None
