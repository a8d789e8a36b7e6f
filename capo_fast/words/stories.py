"""The surface forms: stories that express the same operations in different words.

`{name}` is a person; `{a}` and `{b}` are numbers. A sentence in `packs` states a product as the first quantity,
one in `gain_packs` and `lose_packs` a product that is then added or subtracted. A story need not have every kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

NAMES = (
    *("Ann", "Ben", "Dan", "Eva", "Ida", "Jim", "Kate", "Leo"),
    *("Mia", "Nina", "Omar", "Paul", "Rosa", "Sam", "Tom", "Zoe"),
)


@dataclass(frozen=True)
class Story:
    """One surface form."""

    unit: str
    """The counted unit, written after an equation."""
    questions: tuple[str, ...]
    """Questions."""
    sentences: Mapping[str, tuple[str, ...]]
    """Sentences by kind of event."""


STORIES: dict[str, Story] = {
    "marbles": Story(
        "marbles",
        ("How many marbles does {name} have now?", "How many marbles are there in the end?"),
        {
            "have": ("{name} has {a} marbles.", "There are {a} marbles in {name}'s bag."),
            "packs": ("{name} has {a} bags with {b} marbles each.",),
            "gain": ("A friend gives {name} {a} more.", "{name} finds {a} marbles."),
            "lose": ("{name} loses {a} of them.", "{name} gives {a} away."),
            "gain_packs": ("{name} buys {a} bags of {b} marbles.",),
            "lose_packs": ("{name} gives {a} friends {b} marbles each.",),
            "times": ("Then {name} wins until there are {a} times as many.",),
        },
    ),
    "savings": Story(
        "dollars",
        ("How many dollars does {name} have now?", "How much money is left?"),
        {
            "have": ("{name} has {a} dollars.", "{name} starts with {a} dollars."),
            "packs": ("{name} works {a} hours for {b} dollars an hour.",),
            "gain": ("{name} gets {a} dollars for a birthday.", "{name} earns {a} dollars more."),
            "lose": ("{name} spends {a} dollars.", "A book costs {name} {a} dollars."),
            "gain_packs": ("{name} sells {a} toys for {b} dollars each.",),
            "lose_packs": ("{name} buys {a} pens for {b} dollars each.",),
            "share": ("{name} shares the money equally among {a} people and keeps one share.",),
        },
    ),
    "eggs": Story(
        "eggs",
        ("How many eggs are there now?", "How many eggs are left?"),
        {
            "have": ("A farm has {a} eggs.", "{name} collects {a} eggs."),
            "packs": ("{name} has {a} boxes of {b} eggs.",),
            "gain": ("The hens lay {a} more.", "{name} finds {a} eggs in the barn."),
            "lose": ("{name} breaks {a} eggs.", "{a} eggs go into a cake."),
            "gain_packs": ("Each of {a} hens lays {b} eggs.",),
            "lose_packs": ("{name} sells {a} boxes of {b} eggs.",),
            "share": ("The eggs are put equally into {a} baskets, and one basket is kept.",),
        },
    ),
    "bus": Story(
        "people",
        ("How many people are on the bus now?", "How many people ride on?"),
        {
            "have": ("A bus has {a} people on it.", "{a} people are on a bus."),
            "packs": ("On a bus, {a} rows have {b} people each.",),
            "gain": ("{a} people get on.", "At the next stop {a} more come in."),
            "lose": ("{a} people get off.", "At the school {a} leave the bus."),
            "gain_packs": ("{a} families of {b} people get on.",),
            "lose_packs": ("{a} groups of {b} people get off.",),
        },
    ),
    "walk": Story(
        "km",
        ("How many km does {name} walk in all?", "How long is the walk in km?"),
        {
            "have": ("{name} plans a walk of {a} km.", "{name}'s walk is {a} km long."),
            "packs": ("{name} walks {b} km on each of {a} days.",),
            "gain": ("A detour adds {a} km.", "Then {name} walks {a} km more."),
            "lose": ("A short cut saves {a} km.", "{name} takes a bus for {a} km of it."),
            "gain_packs": ("{name} adds {a} rounds of {b} km.",),
            "lose_packs": ("{name} leaves out {a} rounds of {b} km.",),
            "times": ("The plan changes: {name} walks {a} times as far.",),
        },
    ),
    "books": Story(
        "books",
        ("How many books are on the shelf now?", "How many books are there at the end?"),
        {
            "have": ("A shelf holds {a} books.", "{name} puts {a} books on a shelf."),
            "packs": ("A shelf has {a} rows of {b} books.",),
            "gain": ("{name} adds {a} books.", "{a} new books come in."),
            "lose": ("{name} takes {a} books out.", "{a} books are lent to friends."),
            "gain_packs": ("{name} unpacks {a} boxes of {b} books.",),
            "lose_packs": ("{a} children borrow {b} books each.",),
            "share": ("The books are split equally over {a} shelves; count one shelf.",),
        },
    ),
    "cookies": Story(
        "cookies",
        ("How many cookies does {name} have?", "How many cookies remain?"),
        {
            "have": ("{name} bakes {a} cookies.", "{name} has a jar of {a} cookies."),
            "packs": ("{name} bakes {a} trays of {b} cookies.",),
            "gain": ("{name} bakes {a} more.", "Grandma brings {a} cookies."),
            "lose": ("{name} eats {a} of them.", "The dog eats {a} cookies."),
            "gain_packs": ("{a} guests bring {b} cookies each.",),
            "lose_packs": ("{a} guests eat {b} cookies each.",),
            "share": ("{name} divides them equally into {a} tins and takes one tin.",),
            "times": ("{name} bakes on until there are {a} times as many.",),
        },
    ),
    "stamps": Story(
        "stamps",
        ("How many stamps are in the album now?", "How many stamps does {name} own at the end?"),
        {
            "have": ("{name} owns {a} stamps.", "{name}'s album has {a} stamps."),
            "packs": ("{name}'s album has {a} pages of {b} stamps.",),
            "gain": ("An uncle sends {a} stamps.", "{name} buys {a} stamps."),
            "lose": ("{name} sells {a} stamps.", "{name} uses {a} of them on letters."),
            "gain_packs": ("{name} orders {a} sheets of {b} stamps.",),
            "lose_packs": ("{name} trades away {a} sets of {b} stamps.",),
            "times": ("A year later {name} has {a} times as many.",),
        },
    ),
    "garden": Story(
        "flowers",
        ("How many flowers are in the garden?", "How many flowers stand there now?"),
        {
            "have": ("{name} plants {a} flowers.", "A garden has {a} flowers."),
            "packs": ("{name} plants {a} rows of {b} flowers.",),
            "gain": ("{a} more come up in spring.", "{name} plants {a} others."),
            "lose": ("{name} picks {a} flowers.", "Frost kills {a} of them."),
            "gain_packs": ("{name} adds {a} beds of {b} flowers.",),
            "lose_packs": ("{name} ties {a} bunches of {b} flowers and sells them.",),
        },
    ),
    "club": Story(
        "members",
        ("How many members does the club have now?", "How many members are there?"),
        {
            "have": ("A club has {a} members.", "{name}'s club starts with {a} members."),
            "packs": ("A club has {a} teams of {b} members.",),
            "gain": ("{a} people join.", "In May {a} more sign up."),
            "lose": ("{a} members leave.", "{a} of them move away."),
            "gain_packs": ("{a} classes send {b} new members each.",),
            "lose_packs": ("{a} teams of {b} members quit.",),
            "times": ("After a party the club is {a} times as big.",),
            "share": ("The club splits into {a} equal clubs; count one of them.",),
        },
    ),
    "water": Story(
        "liters",
        ("How many liters are in the tank now?", "How many liters does the tank hold at the end?"),
        {
            "have": ("A tank holds {a} liters.", "{name} fills {a} liters into a tank."),
            "packs": ("{name} pours {a} buckets of {b} liters into a tank.",),
            "gain": ("Rain adds {a} liters.", "{name} pours in {a} liters."),
            "lose": ("{a} liters leak out.", "{name} uses {a} liters."),
            "gain_packs": ("{name} pours in {a} cans of {b} liters.",),
            "lose_packs": ("{a} plants get {b} liters each.",),
            "share": ("The water goes equally into {a} tanks; look at one.",),
        },
    ),
    "school": Story(
        "pencils",
        ("How many pencils are left?", "How many pencils does the class have?"),
        {
            "have": ("A class has {a} pencils.", "{name} brings {a} pencils to school."),
            "packs": ("A class has {a} packs of {b} pencils.",),
            "gain": ("The teacher adds {a} pencils.", "They find {a} more in a drawer."),
            "lose": ("{a} pencils break.", "They lose {a} pencils."),
            "gain_packs": ("Parents give {a} packs of {b} pencils.",),
            "lose_packs": ("{a} pupils take {b} pencils each.",),
            "share": ("The pencils are divided equally among {a} classes; count one class.",),
            "times": ("The school buys more until there are {a} times as many.",),
        },
    ),
    "points": Story(
        "points",
        ("How many points does {name} have?", "What is the final score?"),
        {
            "have": ("{name} has {a} points in a game.", "{name} begins a game with {a} points."),
            "packs": ("{name} wins {a} rounds of {b} points.",),
            "gain": ("{name} scores {a} points.", "A bonus gives {a} points."),
            "lose": ("A foul costs {a} points.", "{name} loses {a} points."),
            "gain_packs": ("{name} hits {a} targets of {b} points.",),
            "lose_packs": ("{name} pays for {a} hints, {b} points each.",),
            "times": ("A star makes the score {a} times as high.",),
        },
    ),
}
"""Stories of the training data."""

HELD_OUT: dict[str, Story] = {
    "train": Story(
        "seats",
        ("How many seats are taken?", "How many seats are full when it arrives?"),
        {
            "have": ("On a train {a} seats are taken.",),
            "packs": ("On a train {a} cars have {b} taken seats each.",),
            "gain": ("Another {a} travellers sit down.",),
            "lose": ("{a} travellers stand up and go.",),
            "gain_packs": ("{a} groups of {b} sit down.",),
            "lose_packs": ("{a} groups of {b} travellers get out.",),
        },
    ),
    "bakery": Story(
        "rolls",
        ("How many rolls can {name} still sell?", "How many rolls lie on the counter?"),
        {
            "have": ("In the morning {name}'s bakery has {a} rolls.",),
            "packs": ("{name}'s bakery starts with {a} trays, {b} rolls on each.",),
            "gain": ("The oven yields another {a}.",),
            "lose": ("Customers buy {a}.",),
            "gain_packs": ("Then come {a} further trays with {b} rolls.",),
            "lose_packs": ("{a} cafes fetch {b} rolls each.",),
            "share": ("They are laid out evenly on {a} counters, of which we watch one.",),
        },
    ),
    "crane": Story(
        "bricks",
        ("How many bricks does {name} end up with?", "How many bricks is that?"),
        {
            "have": ("{name} needs {a} bricks for a wall.",),
            "packs": ("{name} builds a wall of {a} layers, {b} bricks in each.",),
            "gain": ("The new plan calls for {a} extra ones.",),
            "lose": ("A window makes {a} of them superfluous.",),
            "gain_packs": ("{a} pillars need {b} bricks each on top of that.",),
            "lose_packs": ("{a} gaps make {b} bricks each superfluous.",),
            "times": ("The wall is then made {a} times as long.",),
        },
    ),
}
"""Stories that no training data has."""
