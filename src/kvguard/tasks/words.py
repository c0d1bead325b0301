"""Word lists behind the surface forms of the arithmetic task."""


def _words(text: str, separator: str | None = None) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.strip().split(separator))


NAMES = _words(
    """
    Ana Ben Cora Dan Eva Finn Gina Hugo Ida Jack Kira Leo Mia Noah Olga Paul Rita Sam Tara Uma Vera Will
    Zoe Adam Bella Carl Dina Emil Flora Greg Hana Ivan Jane Karl Lena Max Nina Omar Petra Quinn Rosa
    Sven Tina Ugo Viola Wanda Yara Zack Amir Beth Chen Dora Erik Faye Gus Holly Ines Juan Kofi Lucy Mark
    Nora Otto Priya Ralph Sara Tom Ursula Victor Wei Yusuf
    """
)

OBJECTS = _words(
    """
    pens cups hats keys books coins stones shells stamps cards apples pears plums lemons eggs beads
    buttons marbles balls kites ropes boxes bags jars plates spoons forks bowls candles lamps mirrors
    brushes pencils erasers rulers notebooks stickers posters tickets badges ribbons scarves gloves
    socks shirts belts rings masks dolls robots trucks trains planes boats drums bells flutes nails
    screws bricks tiles planks seeds roses tulips leaves nuts figs dates melons carrots onions peppers
    potatoes cookies muffins rolls pies cakes
    """
)

CONTAINERS = _words(
    """
    box jar bag basket chest drawer bucket crate bowl tank barrel pot
    """
)

PACKS = _words(
    """
    boxes bags packs crates trays bundles
    """
)

PLACES = _words(
    """
    at the market, in the park, at school, at home, on the beach, in town, at the fair, in the garden,
    at the shop, in the attic, on the farm, at the station
    """,
    ",",
)

GAIN_VERBS = _words(
    """
    finds buys gets wins collects makes borrows earns
    """
)

LOSS_VERBS = _words(
    """
    loses sells breaks donates drops returns spends discards
    """
)
