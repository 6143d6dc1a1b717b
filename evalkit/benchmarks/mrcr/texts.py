"""Seeded short texts for MRCR conversations: (format, topic, size) -> text.

The texts are made from word lists, in ten shapes (a letter has a salutation, a scene has speakers). They need not be
good; they must differ. Under the official grade two texts for the same request have to score as unrelated prose does
(passages of one novel, cut to 210, 270, 500 and 1,000 characters: 0.040, 0.029, 0.028, 0.024), so the lists are wide,
sentences share no long run of fixed words, each format has several openings, and the topic is named once.
"""

import re
from collections.abc import Iterator, Sequence

import numpy as np

TEXTS_VERSION = "1"
"""Changes whenever the same seed could give another text; part of the recipe."""

_WORDS = {
    "topic": """owls tea rain maps ships kites bees clocks wolves snow bread rivers trains gloves moths cider salt
        bells foxes glass ferries onions chess smoke violins comets moss chalk geese lamps coal apricots
        gates frost barley tides copper hats ducks ink thunder windmills eels mirrors olives ponies quilts
        ropes sledges tunnels vines wells yeast zinc anchors beetles candles dunes engines flutes granite
        herons islands jackdaws kilns ladders mills nettles orchards pigeons quarries rafts saddles turnips
        umbrellas valleys walnuts drums caves""",
    "noun": """bucket lantern wagon barrel kettle needle ribbon blanket hammer button chimney basket pillow
        bottle trumpet parcel whistle curtain drawer feather garment jacket magnet napkin pencil vase wheel banner
        cabinet jar notebook board raincoat apron door window table chair guitar piano coat boot shirt belt ring
        coin book letter stamp poster ticket camera radio tractor bicycle carriage chain nail brick stone fence wall
        tower bridge garden field barn stable shed cellar attic corridor staircase fireplace cushion carpet painting
        statue fountain fork spoon plate bowl cup teapot oven stove pan tray sack crate trunk suitcase helmet shield
        sword flag sail paddle net hook collar horn mask costume puppet doll marble puzzle medal crown jewel
        necklace bracelet comb razor towel bathtub""",
    "adjective": """patient hollow bitter narrow velvet muddy restless ancient crimson gentle humble lazy mellow pale
        rusty sleepy uneven vivid weary yellow clumsy dusty earnest foggy grim hasty idle jolly keen modest noisy
        plain queer ragged stubborn upright vacant chilly eager frugal gloomy inky kindly limp nervous proud quiet
        rough salty timid vain wicker awkward bright cloudy damp faded greasy immense leafy numb rapid sturdy ugly
        abrupt blunt coarse dismal empty fickle golden husky silver crooked broken hidden frozen wooden painted plastic
        public private royal rural secret sharp silent simple slender solid square strange sudden sweet tiny tragic
        warm wild wise young enormous familiar fragile generous honest hungry innocent jealous lonely lucky magic
        mighty naked nasty pleasant polite precious pretty purple""",
    "verb": """mended painted carried borrowed buried weighed polished traded rescued scrubbed balanced captured
        followed guarded ignored kicked noticed opened questioned repaired admired copied delivered examined gathered
        inherited lifted numbered ordered quoted tasted visited watered drained emptied folded hunted inspected locked
        sorted valued sold built found kept lost bought sent left made held taught paid burned cleaned counted covered
        crossed dropped feared filled fixed handed hated hired joined judged loved marked measured missed moved needed
        packed picked placed planted played praised printed pulled pushed raised reached refused rented replaced
        returned saved searched served shared signed stored studied touched trusted turned used wanted washed watched
        welcomed wrapped""",
    "moved": """waited trembled vanished whispered lingered hesitated drifted wandered slept shivered argued coughed
        danced escaped faltered hurried jumped laughed marched nodded paused returned travelled volunteered climbed
        glowed objected sighed fell rose sat stood spoke sang ran failed worked rested cried smiled turned stopped
        listened disappeared surrendered agreed yawned grew shone snored stayed prayed protested""",
    "name": """Ada Bruno Celia Edith Felix Greta Hugo Ingrid Jonas Leopold Maud Nils Quentin Rosa Silas Thea Vera Yusuf
        Anselm Beatrix Flora Gideon Hester Ivo Juno Magnus Nadia Otto Rufus Sabine Tobias Ursula Agnes Basil Clement
        Dora Albert Arthur Clara Diana Emma Frank George Helen Irene Julia Karl Laura Martin Oscar Paul Robert Simon
        Victor Walter""",
    "place": """Oxford Dover Malta Lisbon Cairo Vienna Boston Denver Dublin Geneva Havana Jakarta Kiev Lagos Madrid
        Naples Oslo Paris Quebec Rome Seoul Tokyo Venice Warsaw York Zurich Athens Berlin Chicago Delhi Florence Glasgow
        Hamburg Istanbul Kyoto London Milan Norway Peru Texas Utah Wales""",
    "matter": """patience gossip thunder courage laughter sorrow mischief gratitude rumour weather envy comfort silence
        luck gravity hunger pride duty music fever dignity memory nonsense order panic regret sympathy trust wisdom
        doubt economy friendship glory haste irony justice kindness leisure mercy poverty rhythm suspicion anger beauty
        caution danger evidence faith grief honour logic magic peace""",
    "manner": """slowly bravely quietly oddly proudly barely eagerly grimly hastily kindly loudly neatly openly promptly
        rarely sadly vaguely warmly abruptly briskly daily evenly firmly gladly humbly calmly gently happily secretly
        wisely badly deeply""",
    "time": """yesterday|at dusk|before breakfast|one Tuesday|after the harvest|in late March|during supper|last winter
        |towards midnight|on the third day|between two storms|at low water|by noon|all through June|since the wedding
        |on market day|shortly after nine|while the town slept|every autumn|when the bell rang|for eleven weeks
        |at the first thaw|on Sundays|until the fair|in her youth|long ago|this morning|within the hour""",
    "many": """two three four five six seven eight nine ten eleven twelve thirteen fifteen sixteen twenty thirty
        forty fifty sixty ninety""",
}

_SENTENCES = (
    "{time}, {name} {verb} the {adjective} {noun} and {moved} near {place}",
    "the {noun} was {adjective}, yet {name} {manner} {verb} it",
    "{many} {noun}s and one {adjective} {noun} were {verb} for {matter}",
    "nobody {verb} the {noun} that {name} had {manner} {verb}",
    "in {place} {matter} means {adjective} {noun}s or {adjective} {matter}",
    "{manner}, the {adjective} {noun} {moved} where {many} {noun}s {moved}",
    "my cousin {name} {verb} {many} {adjective} {noun}s {time}",
    "such {matter} {moved} from {place} to {place}, {adjective} and {adjective}",
    "her {adjective} {noun} {moved}; his {noun} only {moved}",
    "had {matter} been {adjective}, {name} would have {verb} that {noun} {time}",
    "behind {name}'s {noun} stood {name}, who {moved} {manner}",
    "{name} and {name} {verb} {many} {noun}s {time}",
    "some {matter}, some {matter}, and half the {noun} remained in {place}",
    "the mayor of {place} {manner} {verb} our {adjective} {noun}",
    "they {moved} because the {noun} had {verb} their {matter}",
    "{time} the {adjective} {noun}s {moved}, and {name} {moved} too",
    "is {matter} worth {many} {adjective} {noun}s?",
    "without {matter} this {noun} seldom {moved}, as {name} {manner} remarked",
    "one {noun}, one {noun} and the {adjective} {noun} of {place} were {verb}",
    "please tell {name} that the {noun} {moved} {time}!",
    "who {verb} {name}'s {noun}, and why so {manner}?",
    "there is {adjective} {matter} in whatever {place} {verb}",
)

_ABOUT = (
    "{time}, {name} {verb} that {noun} full of {topic}",
    "{topic} {moved} past {place} like {adjective} {matter}",
    "not even {matter} prepared {name} for {topic}",
    "in {place} {many} people {verb} {topic} {manner}",
    "{matter} and {topic} have {many} things in common",
    "who in {place} has not {verb} {topic}?",
    "the {adjective} {noun} of {name} smelled of {topic} {time}",
    "only {topic} could have {verb} that {adjective} {noun}",
    "some say {topic} bring {matter}, others {adjective} {noun}s",
    "{name} {moved} {manner} whenever {topic} came up",
    "{many} years of {topic} {verb} our {noun}",
    "keep your {noun}s: give {name} {topic}",
)

# format -> (ways to open, what stands between sentences, ways to close)
_SHAPES: dict[str, tuple[Sequence[str], str, Sequence[str]]] = {
    "poem": (("",), "\n", ("",)),
    "letter": (
        ("Dear {name},\n\n", "{name}, my {adjective} friend,\n\n", "To the keeper of the {noun}, {place}:\n\n"),
        " ",
        ("\n\nYours, {name}", "\n\nEver {manner}, {name} of {place}", "\n\nWith {matter}, {name}"),
    ),
    "diary entry": (("{place}, {time}. ", "Day {many}. ", "{noun} day, {adjective} sky. "), " ", ("",)),
    "riddle": (("",), "\n", ("\nName me.", "\nGuess!", "\nWhat, then, is it?", "\nSay who.")),
    "song": (("({manner})\n", "", "For {name}, in {many} beats\n"), "\n", ("\nOh, {matter}!", "\nHey, {name}, hey!")),
    "short essay": (("On {matter}. ", "", "{matter} first. "), " ", ("",)),
    "news report": (
        ("{place}, {time}. ", "{noun} {verb} in {place}\n\n", "{many} {noun}s found. "),
        " ",
        ("", " More {time}."),
    ),
    "speech": (("Friends of {place}! ", "Citizens, {name}, guests: ", "", "Hush, please. "), " ", ("", " Thank you.")),
    "stage scene": (
        ("Some {adjective} room in {place}.\n", "{name} and the {noun}.\n", "Night. {name} alone.\n"),
        "\n",
        ("\nCurtain.", "\nExit.", "\nThe {noun} falls."),
    ),
    "blog post": (("My {many} {noun}s\n\n", "{adjective} {matter}\n\n", "", "Hello again. "), " ", ("",)),
}

_SLOT = re.compile(r"\{(\w+)\}")
_LISTS = {
    slot: tuple(word.strip() for word in (words.split("|") if "|" in words else words.split()))
    for slot, words in _WORDS.items()
}
FORMATS = tuple(_SHAPES)
TOPICS = _LISTS["topic"]


def write_text(rng: np.random.Generator, form: str, topic: str, num_chars: int) -> str:
    """Return a text in one of ``FORMATS`` about ``topic``, of ``num_chars`` characters up to one sentence more.

    It begins and ends with a visible character, so that a chat template that trims contents leaves it whole.
    """
    draw = _uniforms(rng).__next__

    def pick(options: Sequence[str]) -> str:
        return options[int(draw() * len(options))]

    def fill(pattern: str) -> str:
        text = _SLOT.sub(lambda slot: topic if slot[1] == "topic" else pick(_LISTS[slot[1]]), pattern)
        return text[:1].upper() + text[1:]

    openings, separator, closings = _SHAPES[form]
    opening, closing = fill(pick(openings)), fill(pick(closings))
    missing = num_chars - len(opening) - len(closing)
    topic_at = int(draw() * 3)  # the topic comes in one of the first three sentences
    sentences: list[str] = []
    while missing > 0 or len(sentences) <= topic_at:
        sentence = fill(pick(_ABOUT if len(sentences) == topic_at else _SENTENCES))
        if form == "stage scene":
            sentence = f"{pick(_LISTS['name']).upper()}: {sentence}"
        if sentence[-1] not in "?!":
            sentence += "."
        sentences.append(sentence)
        missing -= len(sentence) + len(separator)
    return opening + separator.join(sentences) + closing


def _uniforms(rng: np.random.Generator) -> Iterator[float]:
    """Yield endless numbers in [0, 1), drawn in blocks: a call into the generator for each word would take longest."""
    while True:
        yield from rng.random(128).tolist()
