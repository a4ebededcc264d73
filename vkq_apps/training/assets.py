"""Makes the fonts and sprites in `assets/` again, from Debian's font packages.

Users and CI do not need this: its results are committed. To run it:

    apt-get download fonts-dejavu-core fonts-liberation2 fonts-comic-neue fonts-noto-color-emoji
    for package in *.deb; do dpkg -x $package unpacked; done
    python -m vkq_apps.training.assets unpacked      # needs fonttools

Each font is cut down to printable ASCII. The licences let changed fonts keep neither the name
"Liberation" nor "Bitstream Vera", so every subset gets a neutral name.
"""

if __name__ == "__main__":  # here: Ctrl-C is heard in the imports below, too
    from vkq_apps.terminal.program import run_module

    run_module("vkq_apps.training.assets")

import dataclasses
import json
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from vkq_apps.terminal.standalone import argument, run_standalone

ASSETS = Path(__file__).parent / "assets"

FONTS = {
    "sans-1": "truetype/dejavu/DejaVuSans.ttf",
    "sans-1-bold": "truetype/dejavu/DejaVuSans-Bold.ttf",
    "serif-1": "truetype/dejavu/DejaVuSerif.ttf",
    "mono-1": "truetype/dejavu/DejaVuSansMono.ttf",
    "sans-2": "truetype/liberation2/LiberationSans-Regular.ttf",
    "serif-2-bold": "truetype/liberation2/LiberationSerif-Bold.ttf",
    "mono-2-bold": "truetype/liberation2/LiberationMono-Bold.ttf",
    "hand-1-bold": "opentype/comic-neue/ComicNeue-Bold.otf",
}
LICENSES = {
    "LICENSE-sans-1-serif-1-mono-1.txt": "fonts-dejavu-core",
    "LICENSE-sans-2-serif-2-mono-2.txt": "fonts-liberation2",
    "LICENSE-hand-1.txt": "fonts-comic-neue",
    "LICENSE-sprites.txt": "fonts-noto-color-emoji",
}
EMOJI_FONT = "truetype/noto/NotoColorEmoji.ttf"
EMOJI_SIZE = 109  # the only size that the bitmap font has

# name[/plural]:emoji. A plural is given where adding "s" is not enough.
EMOJI = """
dog:🐕 cat:🐈 horse:🐎 cow:🐄 pig:🐖 sheep/sheep:🐑 elephant:🐘 rabbit:🐇 bear:🐻 panda:🐼
monkey:🐒 chicken:🐔 penguin:🐧 duck:🦆 owl:🦉 frog:🐸 turtle:🐢 snake:🐍 fish/fish:🐟 whale:🐋
octopus/octopuses:🐙 crab:🦀 butterfly/butterflies:🦋 bee:🐝 snail:🐌 tree:🌳 pine:🌲 palm:🌴
cactus/cactuses:🌵 sunflower:🌻 rose:🌹 mushroom:🍄 apple:🍎 pear:🍐 peach/peaches:🍑 lemon:🍋
banana:🍌 pineapple:🍍 strawberry/strawberries:🍓 cherry/cherries:🍒 carrot:🥕
tomato/tomatoes:🍅 pretzel:🥨 cheese/cheeses:🧀 pizza:🍕 burger:🍔 cake:🎂 donut:🍩 egg:🥚
cup:☕ car:🚗 bus/buses:🚌 truck:🚚 bicycle:🚲 train:🚂 airplane:✈ rocket:🚀 boat:⛵
helicopter:🚁 tractor:🚜 house:🏠 castle:🏰 tent:⛺ clock:⏰ phone:📱 camera:📷 laptop:💻
book:📕 key:🔑 lamp:💡 umbrella:☂ hat:🎩 shoe:👟 shirt:👕 watch/watches:⌚ ball:⚽ guitar:🎸
trumpet:🎺 drum:🥁 violin:🎻 sun:🌞 moon:🌙 heart:❤ flame:🔥 snowman/snowmen:⛄ balloon:🎈
gift:🎁 crown:👑 anchor:⚓ candle:🕯
"""
SPRITE_SIZE, COLUMNS = 80, 10


def subset_font(source: Path, target: Path, name: str) -> None:
    """Writes printable ASCII of one font, without hinting or layout tables, under a new name."""
    from fontTools import subset
    from fontTools.ttLib import TTFont

    options = subset.Options(
        hinting=False, layout_features=[], name_IDs=[0, 13], notdef_outline=True
    )
    font = TTFont(source)
    subsetter = subset.Subsetter(options)
    subsetter.populate(unicodes=range(32, 127))
    subsetter.subset(font)
    for name_id, text in ((1, name), (2, "Regular"), (4, name), (6, name)):
        font["name"].setName(text, name_id, 3, 1, 0x409)
    if "CFF " in font:
        cff = font["CFF "].cff
        cff.fontNames = [name]
        top = cff.topDictIndex[0]
        for attribute in ("FullName", "FamilyName"):
            top.rawDict.pop(attribute, None)
    font.save(target)


def draw_sprite(font: ImageFont.FreeTypeFont, emoji: str) -> Image.Image:
    """One emoji, centred in a transparent square."""
    page = Image.new("RGBA", (180, 180), (0, 0, 0, 0))
    ImageDraw.Draw(page).text((20, 20), emoji, font=font, embedded_color=True)
    drawn = page.crop(page.getbbox())
    side = max(drawn.size)
    square = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    square.paste(drawn, ((side - drawn.width) // 2, (side - drawn.height) // 2))
    return square.resize((SPRITE_SIZE, SPRITE_SIZE), Image.Resampling.LANCZOS)


def draw_sheet(font_file: Path) -> tuple[Image.Image, list[dict[str, str]]]:
    """All emoji on one sheet, row by row, and their names."""
    font = ImageFont.truetype(str(font_file), EMOJI_SIZE)
    names, sprites = [], []
    for entry in EMOJI.split():
        words, emoji = entry.split(":")
        name, _, plural = words.partition("/")
        names.append({"name": name, "plural": plural or name + "s", "emoji": emoji})
        sprites.append(draw_sprite(font, emoji))
    rows = -(-len(sprites) // COLUMNS)
    sheet = Image.new("RGBA", (COLUMNS * SPRITE_SIZE, rows * SPRITE_SIZE), (0, 0, 0, 0))
    for index, sprite in enumerate(sprites):
        row, column = divmod(index, COLUMNS)
        sheet.paste(sprite, (column * SPRITE_SIZE, row * SPRITE_SIZE))
    return sheet, names


@dataclasses.dataclass(frozen=True)
class AssetOptions:
    """The command line of the assets."""

    unpacked: Path = argument(help="Folder that the packages were unpacked into.")


def run(options: AssetOptions) -> None:
    """Writes the assets."""
    root = options.unpacked
    fonts, documents = root / "usr/share/fonts", root / "usr/share/doc"
    ASSETS.mkdir(exist_ok=True)
    for name, source in FONTS.items():
        subset_font(fonts / source, ASSETS / f"{name}{Path(source).suffix}", name)
    sheet, names = draw_sheet(fonts / EMOJI_FONT)
    sheet.save(ASSETS / "sprites.png", optimize=True)
    lines = ",\n  ".join(json.dumps(entry, ensure_ascii=False) for entry in names)
    (ASSETS / "sprites.json").write_text(f"[\n  {lines}\n]\n", encoding="utf-8")
    for target, package in LICENSES.items():
        text = (documents / package / "copyright").read_text(encoding="utf-8")
        (ASSETS / target).write_text(text, encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code, 2 for bad input."""
    module = "vkq_apps.training.assets"
    return run_standalone(AssetOptions, run, module=module, help=__doc__, arguments=arguments)
