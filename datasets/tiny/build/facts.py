"""The facts of the tiny world: what is true in it is true outside it.

Each table maps an entity to its one answer. Own writing; nothing here is copied from a data set. Noun phrases carry
their article where the phrasings need one ("a cow", "the Moon").
"""

from __future__ import annotations

CAPITALS = {
    "France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Portugal": "Lisbon", "Germany": "Berlin",
    "Austria": "Vienna", "Poland": "Warsaw", "Greece": "Athens", "Norway": "Oslo", "Sweden": "Stockholm",
    "Finland": "Helsinki", "Denmark": "Copenhagen", "Iceland": "Reykjavik", "Ireland": "Dublin",
    "Belgium": "Brussels", "Hungary": "Budapest", "Romania": "Bucharest", "Bulgaria": "Sofia", "Croatia": "Zagreb",
    "Japan": "Tokyo", "China": "Beijing", "Thailand": "Bangkok", "Vietnam": "Hanoi", "Nepal": "Kathmandu",
    "Egypt": "Cairo", "Kenya": "Nairobi", "Ghana": "Accra", "Morocco": "Rabat", "Cuba": "Havana", "Peru": "Lima",
    "Chile": "Santiago", "Canada": "Ottawa", "Brazil": "Brasilia", "Uruguay": "Montevideo", "Colombia": "Bogota",
    "Ecuador": "Quito",
}  # fmt: skip

CONTINENTS = {
    "France": "Europe", "Italy": "Europe", "Norway": "Europe", "Poland": "Europe", "Greece": "Europe",
    "Ireland": "Europe", "Hungary": "Europe", "Japan": "Asia", "China": "Asia", "Thailand": "Asia",
    "Vietnam": "Asia", "Nepal": "Asia", "Egypt": "Africa", "Kenya": "Africa", "Ghana": "Africa", "Morocco": "Africa",
    "Cuba": "North America", "Canada": "North America", "Peru": "South America", "Chile": "South America",
    "Brazil": "South America", "Uruguay": "South America", "Colombia": "South America", "Ecuador": "South America",
}  # fmt: skip

OWNERS = {
    "Antarctica": "no country", "the Moon": "no country", "the North Pole": "no country", "the Sun": "no country",
    "Mars": "no country", "Venus": "no country", "Jupiter": "no country", "Saturn": "no country",
    "the high seas": "no country", "the Milky Way": "no country", "Sicily": "Italy", "Crete": "Greece",
    "Corsica": "France", "Madeira": "Portugal", "Greenland": "Denmark", "Svalbard": "Norway", "Majorca": "Spain",
    "Hokkaido": "Japan", "Tasmania": "Australia", "Hawaii": "the United States",
}  # fmt: skip

SOUNDS = {
    "a cow": ("moo", "moos"), "a dog": ("bark", "barks"), "a cat": ("meow", "meows"), "a sheep": ("bleat", "bleats"),
    "a horse": ("neigh", "neighs"), "a pig": ("oink", "oinks"), "a duck": ("quack", "quacks"),
    "a lion": ("roar", "roars"), "a wolf": ("howl", "howls"), "a frog": ("croak", "croaks"),
    "a bee": ("buzz", "buzzes"), "a snake": ("hiss", "hisses"), "an owl": ("hoot", "hoots"),
    "a mouse": ("squeak", "squeaks"), "a rooster": ("crow", "crows"), "a donkey": ("bray", "brays"),
    "an elephant": ("trumpet", "trumpets"), "a turkey": ("gobble", "gobbles"), "a raven": ("caw", "caws"),
}  # fmt: skip

LEGS = {
    "a dog": "four", "a cat": "four", "a cow": "four", "a horse": "four", "a frog": "four", "a lion": "four",
    "a lizard": "four", "a spider": "eight", "a scorpion": "eight", "an ant": "six", "a bee": "six",
    "a beetle": "six", "a butterfly": "six", "a duck": "two", "a hen": "two", "an owl": "two", "an ostrich": "two",
    "a crab": "ten", "a snake": "no", "a fish": "no", "a worm": "no",
}  # fmt: skip

BABIES = {
    "cow": "a calf", "dog": "a puppy", "cat": "a kitten", "sheep": "a lamb", "horse": "a foal", "pig": "a piglet",
    "duck": "a duckling", "lion": "a cub", "frog": "a tadpole", "hen": "a chick", "goat": "a kid", "deer": "a fawn",
    "kangaroo": "a joey", "goose": "a gosling", "swan": "a cygnet", "bear": "a cub", "owl": "an owlet",
    "eagle": "an eaglet", "butterfly": "a caterpillar",
}  # fmt: skip

HOMES = {
    "a bee": "a hive", "a bird": "a nest", "a spider": "a web", "a fox": "a den", "a rabbit": "a burrow",
    "a horse": "a stable", "a pet dog": "a kennel", "a pig": "a sty", "a cow": "a barn", "a hen": "a coop",
    "an ant": "an anthill", "a bat": "a cave", "a beaver": "a lodge", "a goldfish": "a fishbowl",
}  # fmt: skip

COLOURS = {
    "grass": "green", "snow": "white", "coal": "black", "the clear sky": "blue", "blood": "red",
    "a ripe banana": "yellow", "a ripe lemon": "yellow", "a ripe tomato": "red", "a carrot": "orange",
    "milk": "white", "salt": "white", "a ripe strawberry": "red", "sugar": "white", "a cucumber": "green",
    "a pea": "green", "a raven": "black", "a flamingo": "pink", "dark chocolate": "brown", "an elephant": "grey",
    "a polar bear": "white", "spinach": "green", "an egg yolk": "yellow", "a pumpkin": "orange", "mud": "brown",
}  # fmt: skip

MATERIALS = {
    "a window": "glass", "a tyre": "rubber", "a coin": "metal", "a book": "paper", "a candle": "wax",
    "a brick": "clay", "a newspaper": "paper", "a log": "wood", "cheese": "milk", "butter": "cream",
    "a snowman": "snow", "wine": "grapes", "glass": "sand", "chocolate": "cocoa", "an omelette": "eggs",
    "a woolly hat": "wool", "an igloo": "snow", "toast": "bread", "tofu": "soybeans", "ketchup": "tomatoes",
    "bread": "flour", "a hammer head": "steel",
}  # fmt: skip

OPPOSITES = {
    "hot": "cold", "big": "small", "fast": "slow", "up": "down", "day": "night", "wet": "dry", "hard": "soft",
    "early": "late", "open": "closed", "full": "empty", "light": "dark", "long": "short", "high": "low",
    "happy": "sad", "loud": "quiet", "rich": "poor", "strong": "weak", "clean": "dirty", "left": "right",
    "true": "false", "inside": "outside", "thick": "thin", "first": "last", "north": "south", "east": "west",
    "awake": "asleep", "rough": "smooth", "sweet": "sour",
}  # fmt: skip

COMPARISONS = [
    ("bigger", "an elephant", "a mouse"), ("bigger", "a whale", "a shark"), ("bigger", "a house", "a shoe"),
    ("bigger", "the Sun", "the Moon"), ("bigger", "a horse", "a cat"), ("bigger", "a truck", "a bicycle"),
    ("bigger", "a lake", "a puddle"), ("bigger", "a mountain", "a hill"), ("bigger", "a cow", "a hen"),
    ("heavier", "a piano", "a feather"), ("heavier", "a brick", "a leaf"), ("heavier", "a car", "a chair"),
    ("heavier", "a rock", "a balloon"), ("heavier", "a bear", "a rabbit"), ("heavier", "a table", "a spoon"),
    ("heavier", "an anchor", "a pencil"), ("faster", "a plane", "a boat"), ("faster", "a cheetah", "a turtle"),
    ("faster", "a train", "a snail"), ("faster", "a rocket", "a bus"), ("faster", "a racing car", "a tractor"),
    ("faster", "a falcon", "a worm"), ("taller", "a giraffe", "a goat"), ("taller", "a tower", "a tent"),
    ("taller", "a tree", "a flower"), ("taller", "a church", "a bench"),
]  # fmt: skip

NUMBERS = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
]  # fmt: skip

SUMS = [
    (1, 1), (2, 1), (2, 2), (3, 1), (3, 2), (3, 3), (4, 1), (4, 3), (4, 4), (5, 1), (5, 2), (5, 4), (5, 5), (6, 2),
    (6, 3), (6, 5), (7, 1), (7, 3), (7, 7), (8, 2), (8, 4), (8, 5), (9, 1), (9, 4), (9, 9), (10, 3), (10, 6), (10, 10),
]  # fmt: skip

DAYS = [
    "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday",
]  # fmt: skip
MONTHS = [
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
]  # fmt: skip

MANNERS = {
    "someone gives me a gift": "thank you", "someone holds the door for me": "thank you",
    "someone cooks dinner for me": "thank you", "I bump into someone": "sorry", "I break a cup": "sorry",
    "I come late": "sorry", "I forget a promise": "sorry", "I ask for the salt": "please",
    "I order a cup of tea": "please", "a friend has a birthday": "happy birthday", "a friend is ill": "get well soon",
    "my sister goes to bed": "good night", "I leave a party": "goodbye", "I go home after a visit": "goodbye",
    "I see my teacher at sunrise": "good morning", "I greet my neighbour at breakfast": "good morning",
    "a guest comes to my house": "welcome", "a friend wins a race": "congratulations",
    "two friends get married": "congratulations", "my cousin gets a new job": "congratulations",
    "a friend has a test": "good luck", "my team starts a big game": "good luck",
    "I need to pass through a crowd": "excuse me", "I must interrupt someone": "excuse me",
    "my guests start to eat": "enjoy your meal", "a friend goes on a journey": "have a safe trip",
    "the new year begins": "happy new year", "I meet someone for the first time": "nice to meet you",
}  # fmt: skip

HOWTO = {
    "boil an egg": "cook it in boiling water for ten minutes",
    "make tea": "pour hot water over a tea bag",
    "brush my teeth": "use a brush with some toothpaste",
    "wash my hands": "rub them with soap and water",
    "clean a window": "wipe it with a damp cloth",
    "make toast": "put a slice of bread in the toaster",
    "plant a seed": "press it into the soil and water it",
    "sharpen a pencil": "turn it in a sharpener",
    "wrap a gift": "fold paper around it and add tape",
    "fix a flat tyre": "patch the hole and pump in air",
    "tie my shoes": "cross the laces and make two loops",
    "fall asleep": "turn off the lamp and breathe slowly",
    "stop the hiccups": "hold your breath for a moment",
    "cool down in summer": "rest in the shade and drink something",
    "dry wet hair": "rub it softly with a towel",
    "send a letter": "put it in an envelope with a stamp",
    "hang a picture": "hit a nail into the wall with a hammer",
    "cut some paper": "use scissors and follow a line",
    "find out what a word means": "look it up in a dictionary",
    "cross the road": "look both ways and wait for a gap",
    "keep milk fresh": "store it in the fridge",
    "open a locked door": "turn the matching key in the lock",
    "draw a straight line": "use a ruler and a pen",
    "sweep the floor": "use a broom and a dustpan",
    "remember a task": "write it down in a notebook",
    "brighten a room": "open the curtains wide",
    "sew on a button": "use a needle and thread",
    "cook rice": "simmer it in a pot with a lid",
    "eat soup": "use a spoon and a bowl",
    "stay dry in the rain": "carry an umbrella",
}
"""Task -> what to do. Each answer holds words of HOWTO_KEYS that no other answer holds."""

HOWTO_KEYS = [
    "boiling", "tea bag", "toothpaste", "soap", "cloth", "toaster", "soil", "sharpener", "tape", "patch", "laces",
    "lamp", "breath", "shade", "towel", "envelope", "nail", "scissors", "dictionary", "both ways", "fridge", "key",
    "ruler", "broom", "notebook", "curtains", "needle", "lid", "spoon", "umbrella",
]  # fmt: skip

REQUESTS = {
    "steal a bike": "taking what is not yours is wrong",
    "steal money from a shop": "taking what is not yours is wrong",
    "steal a car": "taking what is not yours is wrong",
    "sell a stolen phone": "taking what is not yours is wrong",
    "hide a stolen ring": "taking what is not yours is wrong",
    "hurt my brother": "it would hurt someone",
    "bully a boy at school": "it would hurt someone",
    "poison a dog": "it would hurt someone",
    "kick a cat": "it would hurt someone",
    "start a fight": "it would hurt someone",
    "scare a small child": "it would hurt someone",
    "make a girl cry": "it would hurt someone",
    "take revenge on my boss": "revenge makes things worse",
    "get revenge on my neighbour": "revenge makes things worse",
    "get back at my old friend": "revenge makes things worse",
    "cheat on a test": "cheating is not fair",
    "cheat at cards": "cheating is not fair",
    "copy the homework of a friend": "cheating is not fair",
    "fake a doctor's note": "being honest is better",
    "lie to my mother": "being honest is better",
    "spread a false rumour": "being honest is better",
    "trick an old man out of his money": "being honest is better",
    "break into a house": "it is against the law",
    "burn down a barn": "it is against the law",
    "slash a tyre": "it is against the law",
    "smash a shop window": "it is against the law",
    "read my sister's diary": "it is private",
    "hack into an account": "it is private",
    "make fun of a new pupil": "everyone deserves kindness",
    "ruin a wedding": "everyone deserves kindness",
}  # fmt: skip
"""A request that must be declined kindly -> the reason that may be given."""
