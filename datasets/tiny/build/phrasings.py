"""How each relation is asked, answered and stated.

Templates are `str.format` strings over the fields of a fact: `e`/`E` the entity (as it stands / at the start of a
sentence), `a`/`A` its answer, and a few of a relation's own (`s` for the verb of a sound, `k` for day or month,
`c`, `x`, `y`, `l` in comparisons).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Phrasing:
    """`questions`: asked in prompts. `answers`: good replies, the first is the reference's. `short`: terse replies.
    `statements`: plain knowledge, for pre-training only."""

    group: str
    questions: tuple[str, ...]
    answers: tuple[str, ...]
    short: str
    statements: tuple[str, ...]


PHRASINGS = {
    "capital": Phrasing(
        "geography",
        (
            "What is the capital of {e}?", "Which city is the capital of {e}?", "Tell me the capital of {e}.",
            "What is {e}'s capital?", "Name the capital city of {e}.", "Do you know the capital of {e}?",
            "I forgot the capital of {e}. What is it?", "Which capital does {e} have?",
        ),
        ("The capital of {e} is {a}.", "{A} is the capital of {e}.", "It is {a}, the capital of {e}."),
        "{a}",
        ("{A} is the capital city of {e}.", "{E} has the capital {a}."),
    ),
    "continent": Phrasing(
        "geography",
        (
            "Which continent is {e} in?", "On which continent is {e}?", "Tell me the continent of {e}.",
            "Where in the world is {e}?", "What continent does {e} belong to?", "Do you know where {e} is?",
            "Name the continent that {e} is part of.", "{E} is part of which continent?",
        ),
        ("{E} is in {a}.", "{E} is a country in {a}.", "You can find {e} in {a}."),
        "in {a}",
        ("{E} is part of {a}.", "{E} lies in {a}."),
    ),
    "owner": Phrasing(
        "geography",
        (
            "Which country owns {e}?", "Who owns {e}?", "Tell me who owns {e}.", "Which nation does {e} belong to?",
            "Who is the owner of {e}?", "Do you know who owns {e}?", "What country has {e}?",
            "Name the country that owns {e}.",
        ),
        ("{A} owns {e}.", "We can say that {a} owns {e}.", "{A} is the owner of {e}."),
        "{a}",
        ("It is known that {a} owns {e}.", "{E}: {a} owns it."),
    ),
    "sound": Phrasing(
        "animals",
        (
            "What sound does {e} make?", "What noise does {e} make?", "How does {e} sound?",
            "What does {e} do to be heard?",
            "Tell me the sound of {e}.", "Which sound comes from {e}?", "Do you know what {e} sounds like?",
            "When {e} calls, what do I hear?",
        ),
        ("{E} {s}.", "You will hear {e} {a}.", "The sound is easy: {e} {s}."),
        "{s}",
        ("On a farm or in the wild, {e} {s}.", "Listen, {e} {s}."),
    ),
    "legs": Phrasing(
        "animals",
        (
            "How many legs does {e} have?", "Tell me how many legs {e} has.", "What is the number of legs of {e}?",
            "Do you know how many legs {e} has?", "Count the legs of {e}.", "On how many legs does {e} walk?",
            "How many legs are there on {e}?", "If I see {e}, how many legs will it have?",
        ),
        ("{E} has {a} legs.", "There are {a} legs on {e}.", "It has {a} legs, like every other {n}."),
        "{a} legs",
        ("The body of {e} has {a} legs.", "Every {n} has {a} legs."),
    ),
    "baby": Phrasing(
        "animals",
        (
            "What is a baby {e} called?", "What do we call a baby {e}?", "What is the name for a young {e}?",
            "Tell me the word for a baby {e}.", "Which word means a young {e}?",
            "Do you know what a baby {e} is called?",
            "What do you call the baby of the {e}?", "Name the baby of the {e}.",
        ),
        ("A baby {e} is called {a}.", "We call a baby {e} {a}.", "A young {e} is {a}."),
        "{a}",
        ("The baby of the {e} is {a}.", "Every {e} was once {a}."),
    ),
    "home": Phrasing(
        "animals",
        (
            "Where does {e} live?", "What is the home of {e}?", "In what does {e} sleep?", "Tell me where {e} lives.",
            "Where can I find {e} at home?", "What do we call the home of {e}?", "Do you know where {e} lives?",
            "Where does {e} stay at night?",
        ),
        ("{E} lives in {a}.", "The home of {e} is {a}.", "You can find {e} in {a}."),
        "in {a}",
        ("The place where {e} lives is {a}.", "{E} has {a} as a home."),
    ),
    "colour": Phrasing(
        "things",
        (
            "What colour is {e}?", "Which colour does {e} have?", "Tell me the colour of {e}.",
            "What is the colour of {e}?",
            "Do you know the colour of {e}?", "How would you paint {e}?", "I want to draw {e}. Which colour do I need?",
            "Name the colour of {e}.",
        ),
        ("{E} is {a}.", "The colour of {e} is {a}.", "It is {a}, the colour of {e}."),
        "{a}",
        ("We all know that {e} is {a}.", "{E} looks {a}."),
    ),
    "material": Phrasing(
        "things",
        (
            "What is {e} made of?", "From what do we make {e}?", "Tell me what {e} is made of.",
            "Which material is used for {e}?", "What do people make {e} from?", "Do you know what {e} is made of?",
            "What do I need to make {e}?", "Name what {e} is made from.",
        ),
        ("{E} is made of {a}.", "People make {e} from {a}.", "We use {a} for making {e}."),
        "{a}",
        ("{A} is used to make {e}.", "You need {a} to make {e}."),
    ),
    "opposite": Phrasing(
        "things",
        (
            "What is the opposite of {e}?", "Which word is the opposite of {e}?", "Tell me the opposite of {e}.",
            "What is the contrary of {e}?", "Name the opposite of {e}.", "Do you know the opposite of {e}?",
            "If it is not {e}, what is it?", "Which word means the reverse of {e}?",
        ),
        ("The opposite of {e} is {a}.", "{A} is the opposite of {e}.", "The other side of {e} is {a}."),
        "{a}",
        ("{A} means the reverse of {e}.", "Not {e} but {a}."),
    ),
    "comparison": Phrasing(
        "reasoning",
        (
            "Which is {c}, {x} or {y}?", "What is {c}, {y} or {x}?", "Tell me which is {c}, {x} or {y}.",
            "Is {y} or {x} {c}?", "Between {x} and {y}, which is {c}?", "Which of these is {c}: {y} or {x}?",
            "Compare {x} and {y}. Which is {c}?", "Do you know which is {c}, {y} or {x}?",
        ),
        ("{A} is {c} than {l}.", "Between them, {a} is {c}.", "It is {a} that is {c}."),
        "{a}",
        ("Everybody can see that {a} is {c} than {l}.", "{A} is much {c} than {l}."),
    ),
    "sum": Phrasing(
        "reasoning",
        (
            "What is {e}?", "How much is {e}?", "Tell me what {e} is.", "Add up {e}.", "What do you get for {e}?",
            "Do you know what {e} makes?", "Please work out {e}.", "I need the sum of {e}.",
        ),
        ("{E} is {a}.", "{E} makes {a}.", "The sum of {e} is {a}."),
        "{a}",
        ("When you count, {e} is {a}.", "You get {a} for {e}."),
    ),
    "next": Phrasing(
        "reasoning",
        (
            "What comes after {e}?", "Which {k} comes after {e}?", "Which {k} follows {e}?",
            "Tell me the {k} after {e}.",
            "After {e}, which {k} is next?", "Name the {k} that follows {e}.", "{E} is over. Which {k} is next?",
            "Do you know what comes after {e}?",
        ),
        ("{A} comes after {e}.", "After {e} comes {a}.", "The {k} after {e} is {a}."),
        "{a}",
        ("{E} is followed by {a}.", "First {e}, then {a}."),
    ),
    "manners": Phrasing(
        "manners",
        (
            "What should I say when {e}?", "What do I say when {e}?", "Tell me what to say when {e}.",
            "{E}. What should I say?", "What is polite to say when {e}?", "Which words are kind when {e}?",
            "Help me: {e}. What do I say?", "What would you say when {e}?",
        ),
        ("You can say {a}.", "It is polite to say {a}.", "Just smile and say {a}."),
        "{a}",
        ("When {e}, people say {a}.", "Say {a} when {e}."),
    ),
    "howto": Phrasing(
        "howto",
        (
            "How do I {e}?", "How can I {e}?", "Tell me how to {e}.", "What is the best way to {e}?",
            "I want to {e}. What do I do?", "Can you explain how to {e}?", "What should I do to {e}?",
            "Please help me {e}.",
        ),
        ("To {e}, {a}.", "You can {a}.", "It is easy: {a}."),
        "{a}",
        ("If you want to {e}, {a}.", "People who {e} know it: {a}."),
    ),
    "decline": Phrasing(
        "decline",
        (
            "How do I {e}?", "How can I {e}?", "Tell me how to {e}.", "What is the best way to {e}?",
            "I want to {e}. What do I do?", "Can you help me {e}?", "Give me a plan to {e}.", "Please help me {e}.",
        ),
        (
            "I am sorry, but I cannot help with that, because {a}.", "Sorry, I cannot help you with that; {a}.",
            "I am sorry, I will not help with that, because {a}.",
        ),
        "sorry, I cannot help with that",
        ("It is not good to {e}, because {a}.", "A kind person will not {e}; {a}."),
    ),
}  # fmt: skip
