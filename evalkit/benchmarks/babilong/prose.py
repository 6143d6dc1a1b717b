"""Built-in background text: plain narrative prose about invented villages, made from a small grammar and a seed.

It stands where BABILong uses novels, so that an evaluation runs offline and no page of it can have been trained on.
The text is a chain of short scenes. A scene keeps its persons, place and subject for a few sentences, so neighbouring
sentences belong together as in a book. No person, place, object, animal, colour, direction, time of day or answer
word of any bAbI task occurs in it (``tests/test_prose.py`` holds the list). It is plainer and more regular than a
novel; give books as background to come closer to the published data.
"""

import re
from functools import cache

import numpy as np

MIN_SENTENCE_WORDS, MAX_SENTENCE_WORDS = 8, 35
_NUM_DRAWS = 1 << 16
_A_BEFORE_VOWEL = re.compile(r"\b([Aa]) (?=[aeiou])")


def generate_prose(seed: int, num_words: int) -> str:
    """Return at least ``num_words`` words of prose (at most one scene more), scenes parted by an empty line.

    No sentence occurs twice in the text; all have 8 to 35 words. A shorter text of the same seed is its beginning,
    cut between scenes. Texts of different seeds share no more than a sentence in many thousands: every sentence
    pattern has hundreds of millions of fillings, and text for training is made from other seeds than text to
    evaluate on.
    """
    draws = _Draws(seed)
    seen: set[str] = set()
    scenes: list[str] = []
    words = 0
    while words < num_words:
        scene = _scene(draws, seen)
        words += sum(sentence.count(" ") + 1 for sentence in scene)
        scenes.append(" ".join(scene))
    return _A_BEFORE_VOWEL.sub(r"\1n ", "\n\n".join(scenes))


class _Draws:
    """An endless supply of seeded non-negative integers; drawing them in blocks is many times faster."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._block: list[int] = []

    def below(self, limit: int) -> int:
        if not self._block:
            self._block = self._rng.integers(0, 1 << 31, size=_NUM_DRAWS).tolist()
        return self._block.pop() % limit


def _scene(draws: _Draws, seen: set[str]) -> list[str]:
    """Return the sentences of a new scene, none of them in ``seen``, and add them to it."""
    names = _cast(draws)
    sentences = []
    for kind in ("opening", *["middle"] * (4 + draws.below(6)), "closing"):
        while True:
            sentence = _fill(kind, names, draws)
            sentence = sentence[0].upper() + sentence[1:]
            if MIN_SENTENCE_WORDS <= sentence.count(" ") + 1 <= MAX_SENTENCE_WORDS and sentence not in seen:
                break
        seen.add(sentence)
        sentences.append(sentence)
    return sentences


def _cast(draws: _Draws) -> dict[str, str]:
    """Choose what a scene keeps: a hero and a friend of the other sex (so pronouns stay clear), place, subject."""
    hero_is_male = draws.below(2)
    names = dict(
        zip(("he", "his", "him"), ("he", "his", "him") if hero_is_male else ("she", "her", "her"), strict=True)
    )
    names["hero"] = _fill("man" if hero_is_male else "woman", {}, draws)
    names["friend"] = _fill("woman" if hero_is_male else "man", {}, draws)
    names["relation"] = _fill("female relation" if hero_is_male else "male relation", {}, draws)
    for kept, symbol in (("place", "building"), ("thing", "object"), ("goods", "ware"), ("village", "town")):
        names[kept] = _fill(symbol, {}, draws)
    return names


def _fill(symbol: str, names: dict[str, str], draws: _Draws) -> str:
    """Expand a symbol of the grammar; ``names`` are symbols whose filling is already decided."""
    options = _grammar()[symbol]
    parts = options[draws.below(len(options))]
    if len(parts) == 1:
        return parts[0]
    filled = list(parts)
    for i in range(1, len(parts), 2):  # literals and symbols alternate
        kept = names.get(parts[i])
        filled[i] = kept if kept is not None else _fill(parts[i], names, draws)
    return "".join(filled)


@cache
def _grammar() -> dict[str, list[list[str]]]:
    """Split each pattern into literals and symbols, alternating: "the {adj} cup" is ["the ", "adj", " cup"]."""
    options = {symbol: " ".join(words.split()).split(", ") for symbol, words in _WORDS.items()}
    options |= {symbol: [line.strip() for line in block.strip().splitlines()] for symbol, block in _PATTERNS.items()}
    return {symbol: [re.split(r"[{}]", pattern) for pattern in patterns] for symbol, patterns in options.items()}


_WORDS = {
    "man": """
        Tobias, Edmund, Silas, Rupert, Cornelius, Ambrose, Walter, Gideon, Percival, Alaric, Osbert, Matthias,
        Barnaby, Hector, Jasper, Leopold, Montague, Nathaniel, Orlando, Piers, Quentin, Rufus, Sebastian,
        Thaddeus, Ulric, Vincent, Augustus, Benedict, Caspar, Dunstan, Ephraim, Ferdinand, Gerard, Humphrey,
        Ignatius, Jerome, Kenelm, Lambert, Magnus, Nicholas, Oswald, Phineas, Reginald, Simeon, Theodore,
        Valentine, Lucian, Hubert, Roland, Crispin
    """,
    "woman": """
        Agnes, Beatrice, Cordelia, Dorothea, Eleanor, Florence, Georgiana, Harriet, Isolde, Josephine, Katharine,
        Lavinia, Matilda, Nerissa, Ottilie, Philippa, Rosalind, Sophronia, Theodora, Ursula, Verity, Wilhelmina,
        Adelaide, Clementine, Drusilla, Esther, Felicity, Gwendolen, Henrietta, Imogen, Leonora, Marguerite,
        Octavia, Prudence, Rowena, Susannah, Tabitha, Viola, Winifred, Zenobia, Constance, Honoria, Millicent,
        Penelope, Seraphina, Thomasina, Hester, Rosamund, Lettice, Margery
    """,
    "family": """
        Ashdown, Wrenfield, Pargeter, Holloway, Thistlewood, Merriweather, Crane, Blackwood, Fairbairn, Hargreave,
        Lockhart, Penrose, Quill, Ravenscroft, Selwyn, Trevelyan, Underhill, Vane, Winterbourne, Yardley,
        Amberley, Birtwhistle, Copperfield, Dunmore, Eversley, Fothergill, Garrick, Hathersage, Inglewood, Jessop,
        Kestrel, Larkin, Mossop, Nettleship, Oakes, Pettigrew, Rookwood, Sallow, Tanner, Wycliffe
    """,
    "female relation": "cousin, sister, aunt, niece, neighbour, landlady, partner, godmother",
    "male relation": "cousin, brother, uncle, nephew, neighbour, landlord, partner, godfather",
    "village head": """
        Ald, Bram, Cold, Dun, Elm, Fen, Gild, Hazel, Ivel, Kelm, Lang, Marl, Nether, Over, Pen, Quarn, Ros, Stan,
        Thorn, Ulver, Wen, Yarn, Ash, Birch, Crow, Dray, Fern, Gorse
    """,
    "village tail": """
        bury, combe, ford, ham, holt, leigh, mere, stow, thorpe, wick, worth, bridge, cliff, ness, ton, well
    """,
    "building": """
        harbour, mill, chapel, library, lighthouse, tannery, smithy, orchard, vineyard, quarry, tollhouse, market,
        courthouse, bakery, brewery, foundry, boathouse, customs house, signal tower, almshouse, guildhall,
        ropewalk, bookshop, printing house, observatory, infirmary, granary, dairy, cooperage, ferry landing,
        railway station, post house, tavern, inn, monastery, abbey, watchtower, town hall, counting house,
        shipyard, glassworks, brickyard, pottery, armoury, saltworks, sawmill, smokehouse, museum, theatre,
        drapery
    """,
    "object": """
        ledger, lantern, barometer, kettle, compass, almanac, violin, spyglass, letter, map, satchel, umbrella,
        clock, loom, anvil, saddle, plough, rudder, candlestick, teapot, chronicle, inkwell, telescope, barrel,
        quilt, hymnal, portrait, sextant, spindle, tapestry, flute, weathervane, wheelbarrow, trowel, cradle,
        pocket watch, sundial, abacus, music stand, writing desk, walking stick, copper pan, fishing net, prayer
        book, seed catalogue, bell rope, bookcase, charter, deed, engraving, fiddle, grindstone, hourglass, iron
        gate, jug, lamp, mirror, notebook, oar, printing press, rocking chair, sewing machine, signpost, statue,
        trunk, typewriter, vase, winch, wardrobe, water pump
    """,
    "ware": """
        candles, ropes, barrels, tiles, blankets, herrings, onions, turnips, hops, bricks, nails, stockings,
        ribbons, cheeses, plums, cherries, walnuts, oysters, saddles, pamphlets, newspapers, engravings, maps,
        bottles, lanterns, baskets, wheels, horseshoes, timbers, fleeces, looms, feathers, pears, loaves, spices,
        hides, sails, oars, bells, clocks
    """,
    "trade": """
        clockmaker, cooper, weaver, surveyor, notary, ferryman, blacksmith, bookbinder, apothecary, innkeeper,
        schoolmaster, magistrate, organist, glazier, carpenter, stonemason, shepherd, postmaster, printer,
        saddler, sailmaker, tinsmith, wheelwright, physician, botanist, astronomer, merchant, gamekeeper, bailiff,
        bargeman, cartographer, coachman, lamplighter, thatcher, potter, tailor, baker, miller, sexton, archivist
    """,
    "adj": """
        old, battered, ornate, borrowed, cracked, heavy, polished, forgotten, unfinished, dusty, curious,
        handsome, crooked, well-worn, foreign, rusty, narrow, delicate, ancient, faded, enormous, plain, elegant,
        clumsy, costly, damp, familiar, fragile, gilded, homely, ill-made, intricate, little, lopsided, mended,
        modest, painted, peculiar, precious, scorched, simple, slender, sturdy, tarnished, unlucky, varnished,
        weathered, wooden
    """,
    "mood": """
        anxious, cheerful, cautious, gloomy, hopeful, impatient, proud, puzzled, restless, solemn, stubborn,
        thoughtful, weary, content, doubtful, grateful, suspicious, merry, silent, embarrassed, determined,
        curious, amused, uneasy
    """,
    "quality": """
        patient, careful, slow, dull, honourable, lonely, pleasant, thankless, delicate, noisy, dusty, expensive,
        old-fashioned, dangerous, respectable, curious, difficult, quiet
    """,
    "manner": """
        carefully, slowly, with some reluctance, without a word, with great ceremony, quietly, in a hurry, with
        both hands, rather badly, with unusual skill, at once, out of habit, with a sigh, patiently, from memory,
        in silence, to the surprise of everybody, with a certain pride, after some thought, by candlelight, as
        well as could be expected, for the sake of peace, in great confusion, with evident pleasure
    """,
    "weekday": "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday",
    "month": "January, February, March, April, May, June, July, August, September, October, November, December",
    "weather": """
        wet, windy, mild, frosty, foggy, bright, sultry, stormy, clear, bitter, drizzly, dull, hot, snowy, still,
        chilly
    """,
    "storm": "flood, frost, storm, thaw, drought, heavy snow, gale, long rain, fog, hail, heat, high tide",
    "season": "spring, summer, autumn, winter, harvest, shearing, fair, fast, festival, regatta, election, assizes",
    "seen": "examined, inspected, measured, admired, described, sketched, weighed, studied, counted, catalogued",
    "handled": """
        repaired, cleaned, carried, unpacked, wrapped, moved, oiled, painted, covered, unlocked, borrowed,
        returned, sold, bought, hid, displayed, dusted, mended, pawned, labelled
    """,
    "done": """
        repaired, sold, stolen, painted, forgotten, borrowed, mended, inherited, auctioned, buried, insured,
        pledged, replaced, returned, promised, lost, engraved, neglected, rebuilt, smuggled
    """,
    "said": """
        remarked, explained, insisted, admitted, complained, declared, whispered, supposed, objected, recalled,
        observed, confessed, repeated, argued, suspected, wrote
    """,
    "felt": """
        knew, believed, hoped, feared, suspected, understood, remembered, doubted, imagined, guessed, noticed,
        learned
    """,
    "people": """
        the children, the neighbours, the apprentices, the sailors, the farmers, the pilgrims, the travellers, the
        choir, the clerks, the fishermen, the widows, the soldiers, the musicians, the carters, the gossips, the
        elders, the lodgers, the weavers
    """,
    "gathered": """
        gathered, quarrelled, laughed, whispered, waited, danced, argued, rested, sang, stared, grumbled, hurried
        past
    """,
    "stood": "stood, lay, hung, rested, leaned, waited, remained",
    "many": """
        a dozen, a score of, several, forty, sixty, a great many, fifteen, a wagonload of, twenty, a heap of, half
        a hundred
    """,
    "span": """
        a week, a fortnight, a month, half a year, an hour, a whole winter, a season, several days, a decade, ten
        years
    """,
    "view": """
        the river, the hills, the marsh, the bridge, the moor, the cliffs, the rooftops, the estuary, the canal,
        the meadows, the old wall, the churchyard, the forest, the turnpike, the islands, the mudflats
    """,
    "after": """
        after a while, for a long time, as usual, in the end, before long, now and then, to be sure, at first, by
        and by, against all advice, in truth, more than once, from time to time, as it happened, all the same,
        little by little, for want of anything better, in those days
    """,
    "transport": """
        cart, barge, mail coach, steamer, pack mule, sledge, ferry, railway, canal boat, carrier, wagon, packet
        boat
    """,
    "paper": """
        newspaper, letter, almanac, county register, sermon, pamphlet, contract, diary, catalogue, parish book,
        petition
    """,
    "price": """
        a few shillings, half their worth, ready money, twelve crowns, a mere promise, a barrel of herrings, a
        fair sum, forty guineas, next to their weight in silver, a week of lodging, a month of wages, a handshake,
        ten sovereigns
    """,
    "state": """
        impassable, muddy, unsafe, deserted, well kept, under water, crowded, shorter, blocked by carts, open
        again
    """,
}

_PATTERNS = {
    "town": "{village head}{village tail}",
    "stranger": """
    {man} {family}
    {woman} {family}
    the {trade} of {town}
    old {family}
    a {mood} {trade}
    the widow {family}
""",
    "news": """
    the {object} at {town} had been {done} by a {trade}
    {ware} would fetch {price} before the {season}
    the {storm} had ruined the {building} at {town}
    {stranger} was {mood} about the {object}
    the {building} at {town} needed a new {object}
    {people} of {town} wanted {ware} rather than {ware}
    the way along {view} was {state} since the {storm}
    a {adj} {object} was worth {many} {ware}
    {stranger} meant to leave {town} before the {season}
    the {trade} had {done} every {object} in the {building}
    {stranger} had {handled} the wrong {object} in {month}
    the {thing} came from a {building} near {town}
    the {goods} were meant for {stranger}
""",
    "reason": """
    the {storm} had lasted {span}
    {stranger} had promised {him} {many} {ware}
    the {season} was only {span} away
    {people} had asked for it since {month}
    the {building} at {town} lacked a {object}
    a {trade} from {town} had offered {price}
    {he} was {mood} and could not sleep
    the {transport} from {town} was late again
    {news}
""",
    "speech": """
    We shall need {many} {ware} before the {season}
    The {object} is {adj}, but the {building} is worse
    You may tell {stranger} that I am {mood}
    My grandfather in {town} {handled} a {object} like this
    I never trusted a {trade} with a {object}
    Ask {stranger} about the {object}, and mention the {storm}
    If the {storm} comes back, we can sleep at the {building} in {town}
    There is a {adj} {object} in {town} that would suit the {building}
    They say in {town} that {news}
    I would give {many} {ware} for such a {object}
    It is {quality} work to be a {trade} in {month}
""",
    "while": """
    who had come by {transport} from {town}
    who was {mood} that {weekday}
    who was mending a {adj} {object}
    without looking up from the {paper}
    and {handled} the {object} {manner}
    who had been a {trade} in {town} for {span}
    pointing with a {object} at {view}
""",
    "opening": """
    On a {weather} {weekday} in {month}, {hero} {family} came to the {place} at {village} to see about the {goods}.
    {hero} {family}, the {trade} of {village}, had kept a {adj} {thing} at the {place} for {span}.
    In the {season} of that year the {place} at {village} fell to {hero} {family}, a {mood} {trade} fond of {goods}.
    Everybody in {village} remembered the {weekday} on which {hero} {family} carried a {adj} {thing} into the {place}.
    {hero} {family} had been {trade} at {village} for {span} when the {storm} of {month} reached the {place}.
    It was a {weather} {month}, and {hero} {family} spent most of it at the {place} in {village}, counting {goods}.
    The road from {town} to {village} passes the {place}, and there {hero} {family} lived with a {adj} {thing}.
    When the {storm} was over, {hero} {family} opened the {place} at {village} and sent {friend} for {many} {goods}.
    Long before the railway reached {village}, {hero} {family} bought a {adj} {thing} from a {trade} in {town}.
    {friend} first met {hero} {family} at the {place} in {village}, during the {season}, over a quarrel about {goods}.
    The {place} at {village} was known for its {goods}, and {hero} {family}, the {mood} {trade}, for a {thing}.
""",
    "middle": """
    {he} {seen} the {thing} {manner} and {said} that {news}.
    {he} {seen} the {goods} {manner}, and {friend} {said} that {news}.
    {after}, {he} {handled} the {object} {manner}, for {reason}.
    {after}, {friend} {handled} the {thing} {manner}, because {reason}.
    {friend}, {his} {relation}, {felt} that {news}.
    {his} {relation} {friend} {said} {manner} that {news}, and went on sorting the {goods}.
    "{speech}," said {friend}, {while}.
    "{speech}," {he} said, {while}.
    "{speech}," {friend} answered, "and I would not touch those {goods} before the {season}."
    beside the {thing} {stood} a {adj} {object} that {stranger} had brought from {town}.
    whenever a {weather} wind came over {view}, {people} {gathered} near the {place} and spoke of the {thing}.
    it was {quality} work to sort the {goods}, and {he} did it {manner} while {people} {gathered}.
    from the {place} {he} could see {view}, and on {weather} days even the {building} of {town}.
    {people} {gathered} when {friend} {handled} the {object}, because {reason}.
    {many} {goods} had come from {town} by {transport}, and {he} {seen} each of them {manner}.
    the {thing} had been {done} {span} before, and {stranger} still {felt} that {news}.
    {friend} read aloud from the {paper}, in which {stranger} {said} that {news}.
    {he} {felt} that {news}, though {friend} {said} the contrary.
    if the {storm} lasted another week, {he} {said}, the {goods} would have to be sold in {town} for {price}.
    behind the door {stood} a {adj} {object}, and on the shelf a {adj} {object} that had been {done} in {town}.
    the {transport} from {town} brought {many} {ware} and a {adj} {object} for {stranger}.
    {he} wrote to the {building} at {town} about the {thing}, and the reply, in a {adj} envelope, took {span}.
    for {span} the {goods} {stood} in the {place}, until {stranger} {handled} them {manner}.
    {after}, {people} of {village} came to look at the {thing}, which {stranger} had {done} in {month}.
    {friend} was {mood}, and {said} {manner} that {reason}.
    {he} asked {stranger} for {many} {ware}, but {reason}, and the {goods} had to wait.
    in {month} the {storm} came as far as {view}, and {he} {handled} the {object} by the light of a {adj} lamp.
    {friend} had once been a {trade} in {town} and {felt} {manner} that {news}.
    {stranger}, who knew the {place} well, offered {price} for the {goods} and a {adj} {object}.
    the more {he} {seen} the {thing}, the more {mood} {friend} became, since {reason}.
    between the {place} and {view} there was a {adj} bridge, which {stranger} had {done} during the {season}.
    {he} sat down to a supper of bread and onions while {friend} {handled} the {adj} {object} from {town}.
    according to the {paper}, {stranger} had {handled} a {thing} just like it at the {building} in {town}.
    neither {he} nor {friend} {felt} that {news}, for the {trade} had told them {manner} of a {object}.
    the roof of the {place} leaked in {weather} weather, so {he} kept the {goods} under a {adj} cloth from {town}.
    {stranger} sent word from {town} that {news}, and {he} {seen} the {goods} again.
    {manner}, {friend} drew a {object} on the back of the {paper}, and {he} {said} that {news}.
    some of {people} {said} that the {thing} had been {done} in {town}, while {stranger} {felt} that {news}.
""",
    "closing": """
    so the {thing} stayed at the {place}, and {people} of {village} {gathered} there until {month}, when {reason}.
    by the end of {month} the {goods} were gone, and {hero} {felt} that {news}.
    {friend} went home along {view}, {mood} and rather {mood}, with the {thing} and a {adj} {object} in a basket.
    years later {hero} still {said} that {news}, and {friend} never contradicted {him}.
    that was the last {weekday} on which {hero} and {friend} spoke of the {thing}, for {reason}.
    {after}, {hero} locked the {place}, {handled} the {thing} {manner}, and walked back to {town} by way of {view}.
    {hero} kept the {adj} {thing} all the same, and {stranger} {said} in {month} that {news}.
    when the {transport} for {town} was ready, {hero} {handled} the {goods} {manner} and was never {mood} again.
""",
}
