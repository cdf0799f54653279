import inspect

from chameleon_study.corpora.prose import prose

NUMPYDOC = """
    Return the middle of a list, which is the mean of two where there is no middle.

    Parameters
    ----------
    values : list of float
        The numbers to look at, which need not be sorted in any way at all.

    Notes
    -----
    The list is copied before it is sorted, so that :func:`~toy.middle` leaves the argument as it was.

    - a list is not prose, even when one of its items is a sentence of the language.

    >>> middle([1, 2, 3])
    2
"""

GOOGLE = """Opens the door to the garden, waits until the cat is out, and closes it.

Args:
    door (Door): the door that is to be opened, and closed again when the cat is out.

    cat (Cat): the cat for whom all of this is done, whether it is grateful or not.

Note:
    The cat may want to come back in before the door is closed, which is not an error.

This is said after the sections have ended, and it is a part of the prose again.
"""


def test_numpydoc_sections():
    assert prose(inspect.cleandoc(NUMPYDOC)) == [
        "Return the middle of a list, which is the mean of two where there is no middle.",
        "The list is copied before it is sorted, so that `toy.middle` leaves the argument as it was.",
    ]


def test_google_sections():
    first, note, last = prose(GOOGLE)
    assert (
        first.startswith("Opens the door")
        and note.startswith("The cat may")
        and last.startswith("This is said")
    )


def test_boilerplate_and_code_are_left_out():
    assert (
        prose("This file is in the process of migration and it will be removed in one of the next versions.")
        == []
    )
    assert (
        prose("x = frobnicate(alpha, beta, gamma, delta)[0:3] + 4.2 * np.array([1, 2, 3, 4, 5, 6, 7, 8])")
        == []
    )
    assert prose("Too short to be of use.") == []
