"""The questions of the two tasks, 200 each, as JSON lines: made of the tables below, the same every time.

python questions.py FOLDER
"""

import json
import random
import sys
from pathlib import Path

COUNT = 200
CAPITALS = """France Paris|Germany Berlin|Italy Rome|Spain Madrid|Portugal Lisbon|Norway Oslo|Sweden Stockholm|
Finland Helsinki|Denmark Copenhagen|Poland Warsaw|Austria Vienna|Hungary Budapest|Greece Athens|Turkey Ankara|
Egypt Cairo|Kenya Nairobi|Ghana Accra|Nigeria Abuja|Morocco Rabat|Algeria Algiers|Tunisia Tunis|
Ethiopia Addis Ababa|Japan Tokyo|China Beijing|India New Delhi|Nepal Kathmandu|Thailand Bangkok|Vietnam Hanoi|
Indonesia Jakarta|Mongolia Ulaanbaatar|Iran Tehran|Iraq Baghdad|Jordan Amman|Lebanon Beirut|Russia Moscow|
Ukraine Kyiv|Romania Bucharest|Bulgaria Sofia|Serbia Belgrade|Croatia Zagreb|Ireland Dublin|Iceland Reykjavik|
Belgium Brussels|Canada Ottawa|Mexico Mexico City|Cuba Havana|Peru Lima|Chile Santiago|Argentina Buenos Aires|
Brazil Brasilia|Colombia Bogota|Ecuador Quito|Uruguay Montevideo|Bolivia Sucre|Australia Canberra|
Switzerland Bern|Latvia Riga|Estonia Tallinn|Lithuania Vilnius|Slovakia Bratislava"""
OPPOSITES = """hot cold|big small|high low|fast slow|light dark|early late|full empty|open closed|rich poor|
young old|hard soft|wet dry|loud quiet|strong weak|near far|left right|up down|day night|good bad|true false|
begin end|win lose|buy sell|push pull|give take|love hate|war peace|happy sad|clean dirty|deep shallow|
wide narrow|thick thin|sharp blunt|sweet sour|alive dead|always never|inside outside|above below|first last|
friend enemy"""
KINDS = """robin bird|oak tree|salmon fish|rose flower|hammer tool|violin instrument|apple fruit|
carrot vegetable|beetle insect|gold metal|shirt garment|sofa piece of furniture|Mars planet|Spanish language|
tennis sport|ruby gem|cobra snake|sparrow bird|pine tree|trout fish|tulip flower|saw tool|flute instrument|
pear fruit|onion vegetable|ant insect|iron metal|coat garment|table piece of furniture|Venus planet|
Russian language|football sport|emerald gem|python snake|eagle bird|maple tree|herring fish|daisy flower|
wrench tool|cello instrument|cherry fruit|cabbage vegetable|wasp insect|copper metal|skirt garment|
chair piece of furniture|Saturn planet|Italian language|hockey sport|diamond gem"""
SERIES = """Monday Tuesday Wednesday Thursday Friday Saturday Sunday|
January February March April May June July August September October November December|
one two three four five six seven eight nine ten eleven twelve|A B C D E F G H I J K L M N O P|
Mercury Venus Earth Mars Jupiter Saturn Uranus Neptune|
first second third fourth fifth sixth seventh eighth ninth tenth"""
PAST = """go went|see saw|eat ate|write wrote|take took|give gave|come came|run ran|sing sang|drink drank|
think thought|bring brought|buy bought|teach taught|find found|keep kept|sleep slept|speak spoke|drive drove|
fly flew|know knew|grow grew|begin began|swim swam|ring rang|break broke|choose chose|forget forgot|wear wore|
hear heard|feel felt|leave left|lose lost|meet met|pay paid|sell sold|send sent|sit sat|stand stood|tell told|
win won|build built|catch caught|draw drew|fall fell"""
MANY = """mouse mice|goose geese|foot feet|tooth teeth|child children|man men|woman women|ox oxen|knife knives|
leaf leaves|wolf wolves|city cities|box boxes|sheep sheep|fish fish|baby babies|party parties|church churches|
potato potatoes|hero heroes|life lives"""
PLACES = "drawer cupboard garden kitchen basket cellar attic pocket suitcase garage bottle envelope"
THINGS = "key letter coin photograph ring notebook map ticket lamp watch"
SIGHTS = (
    "The rain had stopped an hour before, and the street was empty.",
    "Nobody had been in the house since the spring, when the last guests left.",
    "He counted the money twice, put on his coat, and waited for the bus.",
    "It was a long winter: the lake froze in November, and the ice stayed until the end of March.",
    "The museum opens at nine, but the guard, who knew her, let her in a little earlier that day.",
)


def pairs(table: str) -> list[tuple[str, str]]:
    """(first word, the rest) of each entry."""
    return [tuple(entry.strip().split(" ", 1)) for entry in table.replace("\n", "").split("|")]  # type: ignore[misc]


def series() -> list[list[str]]:
    return [entry.split() for entry in SERIES.replace("\n", "").split("|")]


def choices(rng: random.Random) -> list[dict]:
    """Questions with four answers: question, choices, and the number of the right one."""
    made = []
    for text, table in (
        ("The capital of {} is", CAPITALS),
        ("The opposite of the word {} is", OPPOSITES),
        ("{} is a kind of", KINDS),
    ):
        answers = list(dict.fromkeys(answer for _, answer in pairs(table)))
        for word, answer in pairs(table):
            made.append((text.format(word), answer, rng.sample([a for a in answers if a != answer], 3)))
    while len(made) < COUNT:
        a, b = rng.randint(2, 40), rng.randint(2, 40)
        wrong = rng.sample([n for n in range(a + b - 9, a + b + 10) if n > 0 and n != a + b], 3)
        made.append((f"{a} + {b} =", str(a + b), [str(n) for n in wrong]))
    found = []
    for question, answer, wrong in made[:COUNT]:
        order = [answer, *wrong]
        rng.shuffle(order)
        found.append({"question": question, "choices": order, "answer": order.index(answer)})
    return found


def endings(rng: random.Random) -> list[dict]:
    """Texts and how they end: context, ending."""
    made = [(f"{city} is the capital of", country) for country, city in pairs(CAPITALS)]
    made += [(f"Today I {now}, yesterday I", then) for now, then in pairs(PAST)]
    made += [(f"I have one {one}. She has three", many) for one, many in pairs(MANY)]
    for words in series():
        for stop in range(3, len(words)):
            made.append((", ".join(words[max(0, stop - 4) : stop]) + ",", words[stop]))
    while len(made) < COUNT:
        place, thing = rng.choice(PLACES.split()), rng.choice(THINGS.split())
        middle = " ".join(rng.sample(SIGHTS, rng.randint(1, len(SIGHTS))))
        made.append(
            (
                f"Anna had put the {thing} into the {place}. {middle} Then Anna went to look for the {thing}."
                " It was still in the",
                place,
            )
        )
    rng.shuffle(made)
    return [{"context": context, "ending": ending} for context, ending in made[:COUNT]]


def main(folder: Path) -> None:
    for name, make in (("choices", choices), ("endings", endings)):
        lines = [json.dumps(question) + "\n" for question in make(random.Random(name))]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
