# SPDX-License-Identifier: Apache-2.0
"""Synthetic retrieval tasks: copy, key-value lookup, needle in a text, two hops. Text in, text out.

Every maker returns turns of a conversation, [(question, answer), ...]: the first question holds all that is needed to
answer it and those after it. `budget` is the rough length in tokens of the first question with its answer.

Meant for a very small model. The words are such that its tokenizer has one token for each of them with the space before
it. A value stands right behind its key, and an answer begins with a space and repeats the key, so that it is made of the
very tokens of the question in their order.
"""

NAMES = ("Alan Alice Amy Anne Arthur Ben Beth Bobbie Cyrus Dan Davy Diana Dick Dorothy Elizabeth Emily Fritz George "
         "Gilbert Harvey Henry Herbert Jack James Jane Jim Joe John Martha Mary Matthew Meg Nan Nat Ned Peter Phil Polly "
         "Robert Robin Sara Susan Teddy Tom Walter").split()
SURNAMES = "Green March Wood Hood Lynde Fogg Harding Holmes Watson Kennedy".split()
COLORS = "red blue green white black yellow brown silver golden grey pink".split()
THINGS = ("animal bag ball balloon bank bear beast bed bell bird board boat book bow box boy bread breakfast bridge brother "
          "bull butter cabin camp captain carriage cart case castle cat cave chair chest chief child church city cloud "
          "coast coat companion corner country court cow creature crew crowd cup daughter deck desert dinner doctor dog "
          "doll door dragon dream dress drink ear edge egg engine engineer evening eye face fairy father feast feather "
          "field fire fish floor flower fool forest fort friend garden gate ghost girl glass gun hall hand hat head hill "
          "hole home horse house husband island journey key king kitchen knife knight lady lake land language law leg "
          "letter line lock maid master meat mill money moon mother mountain mouth music neck nose number ocean office "
          "palace paper party path pen picture pie pig pin plan plate platform pocket poet police priest prince prison "
          "project queen raft river road rock roof room rose sail sailor school servant shadow ship shore shoulder sister "
          "sky smile son song soul spirit star station stone storm story stranger stream street sun supper sword table "
          "tail tea throat tongue town track train tree uncle valley vessel village voice wall wife wind window word "
          "world").split()
QUALITIES = ("angry big bitter bold brave bright broad broken calm clean clear clever cold cool cruel curious dark dead "
             "deep difficult dim dry dull famous fat fierce fine flat fond foolish fresh full gay gentle glad good grand "
             "great handsome happy hard heavy holy honest horrible hot huge hungry ill immense important large late light "
             "little lonely long lost loud lovely low mad merry mighty mysterious narrow new nice noble odd old pale "
             "peculiar plain pleasant poor pretty proud queer quick quiet ready rich rough round royal sad safe sharp "
             "short sick silent simple slow small smooth soft solemn solid splendid strange strong sweet swift tall "
             "tender terrible thick thin tired true useful usual vast warm weak wet wicked wide wild wise wonderful "
             "young").split()
WORDS = THINGS + QUALITIES
FULL_NAMES = [f"{name} {surname}" for name in NAMES for surname in SURNAMES]
COLORED_THINGS = [f"{color} {thing}" for color in COLORS for thing in THINGS]


def copy(rng, budget, _passage, _asks):
    words = []
    while len(words) < max(3, (budget - 8) // 2):  # no word comes again before all have come
        words += rng.sample(WORDS, len(WORDS))
    text = " ".join(words[: max(3, (budget - 8) // 2)])
    return [(f"Repeat this: {text}", f" {text}")]


def key_value(rng, budget, _passage, asks):
    for cost, pool in ((3, THINGS), (4, COLORED_THINGS)):  # tokens of a pair; longer keys where the short do not suffice
        count = max(2, (budget - 12) // cost)
        if count <= len(pool):
            break
    keys = rng.sample(pool, count)
    values = [rng.choice(QUALITIES) for _ in keys]
    asked = rng.sample(range(count), min(asks, count))
    facts = ", ".join(f"{k} {v}" for k, v in zip(keys, values))
    return with_context(f"Remember: {facts}.", [(keys[i], values[i]) for i in asked])


def needle(rng, budget, passage, asks):
    """`passage(tokens)` gives book text of about that many tokens; a needle stands between two of its sentences."""
    text = passage(max(15, budget - 10 - 8 * asks))
    pairs = list(zip(rng.sample(THINGS, asks), rng.sample(QUALITIES, asks)))
    for key, value in pairs:
        cuts = [i + 1 for i in range(len(text) - 1) if text[i] in ".!?" and text[i + 1] in " \n"] or [0]
        at = rng.choice(cuts)
        text = f"{text[:at]} Remember: {key} {value}.{text[at:]}"
    return with_context(text, pairs)


def two_hop(rng, budget, _passage, asks):
    """The answer names what the first hop finds, then what the second finds."""
    for cost, owners, things in ((6, NAMES, THINGS), (7, FULL_NAMES, THINGS), (9, FULL_NAMES, COLORED_THINGS)):
        count = max(2, (budget - 14) // cost)
        if count <= min(len(owners), len(things)):
            break
    owners, things = rng.sample(owners, count), rng.sample(things, count)
    values = [rng.choice(QUALITIES) for _ in owners]
    facts = [f"{o} {t}" for o, t in zip(owners, things)] + [f"{t} {v}" for t, v in zip(things, values)]
    rng.shuffle(facts)
    asked = rng.sample(range(count), min(asks, count))
    return with_context(f"Remember: {', '.join(facts)}.", [(owners[i], f"{things[i]} {values[i]}") for i in asked])


def with_context(context, pairs):
    turns = [(f"What about {key}?", f" {key} {value}") for key, value in pairs]
    return [(f"{context}\n{turns[0][0]}", turns[0][1])] + turns[1:]


TASKS = {"copy": copy, "key_value": key_value, "needle": needle, "two_hop": two_hop}


def make(task, rng, budget, passage, asks=1):
    """Turns of one problem; `asks` is the most questions that are put after one context."""
    return TASKS[task](rng, budget, passage, asks)
