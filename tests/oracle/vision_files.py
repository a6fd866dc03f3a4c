"""Picture files of every kind that dataio must read, for the vision oracle."""
import io
import pathlib
import struct
import zlib
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFile
from sklearn.datasets import load_sample_images


class Case(NamedTuple):
    name: str
    path: pathlib.Path
    exact: bool  # decoders must agree to the bit


# Pillow gives its JPEG encoder one buffer, too small for noise at quality 100.
ImageFile.MAXBLOCK = 1 << 22

ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]


def picture(rng, height, width, channels):
    """Smooth structure with some noise: neither flat nor incompressible."""
    generator = np.random.default_rng(rng.randrange(2**32))
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    planes = []
    for _ in range(channels):
        a, b, phase = generator.uniform(-0.2, 0.2, 2).tolist() + [generator.uniform(0, 6)]
        planes.append(127 + 100 * np.sin(a * x + b * y + phase) + generator.normal(0, 12, (height, width)))
    return np.clip(np.stack(planes, -1), 0, 255).astype(np.uint8)


def noise_png(path, height, width, rng):
    Image.fromarray(picture(rng, height, width, 3)).save(path)
    return path


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def packed_row(samples, depth):
    """One line of samples [W, C] as PNG stores it."""
    if depth == 16:
        return samples.astype(">u2").tobytes()
    if depth == 8:
        return samples.astype(np.uint8).tobytes()
    bits = ((samples.reshape(-1, 1) >> np.arange(depth - 1, -1, -1)) & 1).astype(np.uint8)
    return np.packbits(bits.reshape(-1)).tobytes()


def write_png(path, samples, color, depth, interlaced=False, before=b"", after=b""):
    """samples [H, W, C] -> a PNG of that colour type and bit depth, extra chunks before and after the pixels."""
    height, width = samples.shape[:2]
    passes = [samples]
    if interlaced:
        passes = [samples[y::dy, x::dx] for x, y, dx, dy in ADAM7]
    rows = b"".join(b"\0" + packed_row(row, depth) for part in passes if part.size for row in part)
    head = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, int(interlaced))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + before + chunk(b"IDAT", zlib.compress(rows)) + after
                     + chunk(b"IEND", b""))


def png_cases(folder, rng):
    for color, channels, depths in ((0, 1, (1, 2, 4, 8, 16)), (2, 3, (8, 16)), (3, 1, (1, 2, 4, 8)), (4, 2, (8, 16)),
                                    (6, 4, (8, 16))):
        for depth in depths:
            for variant in ("plain", "interlaced", "tRNS"):
                height, width = rng.randrange(1, 70), rng.randrange(1, 70)
                generator = np.random.default_rng(rng.randrange(2**32))
                samples = generator.integers(0, 2**depth, (height, width, channels))
                if color == 0 and depth == 16 and variant != "plain":
                    samples //= 200  # values on both sides of 255
                before = b""
                if color == 3:
                    num_colors = 2**depth if variant == "plain" else max(2, 2**depth - 3)
                    samples %= num_colors
                    before = chunk(b"PLTE", generator.integers(0, 256, 3 * num_colors, np.uint8).tobytes())
                    if variant == "tRNS":
                        before += chunk(b"tRNS", generator.integers(0, 256, num_colors, np.uint8).tobytes())
                elif color in (0, 2) and variant == "tRNS":
                    before = chunk(b"tRNS", struct.pack(f">{channels}H", *[int(v) for v in samples[0, 0]]))
                name = f"png_{color}_{depth}_{variant}"
                write_png(folder / f"{name}.png", samples, color, depth, variant == "interlaced", before)
                yield Case(name, folder / f"{name}.png", True)


def exif_block(orientation, order):
    e = "<" if order == b"II" else ">"
    entry = struct.pack(e + "HHIHH", 0x0112, 3, 1, orientation, 0)
    other = struct.pack(e + "HHII", 0x0100, 4, 1, 77)
    return order + struct.pack(e + "HIH", 42, 8, 2) + other + entry + struct.pack(e + "I", 0)


def xmp_packet(orientation, as_attribute):
    body = f' tiff:Orientation="{orientation}"/>' if as_attribute else f"><tiff:Orientation>{orientation}</tiff:Orientation>"
    return f"<x:xmpmeta><rdf:Description{body}</x:xmpmeta>".encode()


def rotated_cases(folder, rng):
    for orientation in range(0, 10):
        image = Image.fromarray(picture(rng, rng.randrange(3, 60), rng.randrange(3, 60), 3))
        exif = exif_block(orientation, rng.choice([b"II", b"MM"]))
        xmp = xmp_packet(orientation, rng.random() < 0.5)
        name = f"exif_{orientation}"
        image.save(folder / f"{name}.jpg", exif=b"Exif\0\0" + exif, quality=90)
        image.save(folder / f"{name}_xmp.jpg", xmp=xmp, quality=90)
        image.save(folder / f"{name}.webp", exif=exif, lossless=True)
        image.save(folder / f"{name}_xmp.webp", xmp=xmp, lossless=True)
        samples = np.asarray(image)
        profile = b"\nexif\n%8d\n" % (len(exif) + 6) + (b"Exif\0\0" + exif).hex().encode() + b"\n"
        write_png(folder / f"{name}.png", samples, 2, 8, before=chunk(b"eXIf", exif))
        write_png(folder / f"{name}_late.png", samples, 2, 8, after=chunk(b"eXIf", exif))
        write_png(folder / f"{name}_raw.png", samples, 2, 8,
                  before=chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(profile)))
        write_png(folder / f"{name}_xmp.png", samples, 2, 8,
                  before=chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(xmp)))
        for suffix in (".jpg", "_xmp.jpg", ".webp", "_xmp.webp", ".png", "_late.png", "_raw.png", "_xmp.png"):
            path = folder / (name + suffix)
            yield Case(path.name, path, path.suffix != ".jpg")


def jpeg_cases(folder, rng):
    for number in range(40):
        mode = rng.choice(["RGB", "RGB", "L", "CMYK"])
        channels = {"RGB": 3, "L": 1, "CMYK": 4}[mode]
        samples = picture(rng, rng.randrange(1, 300), rng.randrange(1, 300), channels)
        image = Image.fromarray(samples[..., 0] if mode == "L" else samples, mode)
        options = {"quality": rng.choice([10, 50, 75, 95, 100]), "progressive": rng.random() < 0.5}
        if mode == "RGB":
            options["subsampling"] = rng.choice(["4:4:4", "4:2:2", "4:2:0"])
            options["keep_rgb"] = rng.random() < 0.2
        if rng.random() < 0.3:
            options["restart_marker_blocks"] = rng.randrange(1, 20)
        if options.get("keep_rgb"):
            del options["subsampling"]
        path = folder / f"j{number}.jpg"
        image.save(path, **options)
        if mode == "CMYK" and rng.random() < 0.5:  # the mark that Adobe programs leave: transform 0, or YCCK
            data = path.read_bytes()
            mark = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([rng.choice([0, 2])])
            path.write_bytes(data[:2] + mark + data[2:])
        yield Case(f"{path.name} {mode} {options}", path, False)


def webp_cases(folder, rng):
    for number in range(24):
        channels = rng.choice([3, 4])
        image = Image.fromarray(picture(rng, rng.randrange(1, 300), rng.randrange(1, 300), channels))
        lossless = number % 2 == 0
        path = folder / f"w{number}.webp"
        image.save(path, lossless=lossless, quality=rng.choice([5, 60, 95]), exact=True)
        yield Case(path.name, path, lossless)
    for number in range(4):
        size = rng.randrange(2, 90), rng.randrange(2, 90)
        frames = [Image.fromarray(picture(rng, *size, 4)) for _ in range(3)]
        path = folder / f"animated{number}.webp"
        frames[0].save(path, save_all=True, append_images=frames[1:], lossless=number % 2 == 0, exact=True)
        yield Case(path.name, path, number % 2 == 0)
    frames = [Image.fromarray(picture(rng, 20, 30, 3)) for _ in range(3)]
    frames[0].save(folder / "animated.png", save_all=True, append_images=frames[1:])
    yield Case("animated.png", folder / "animated.png", True)


def every_format(folder, rng):
    makers = (png_cases, rotated_cases, jpeg_cases, webp_cases)
    return [case for maker in makers for case in maker(folder, rng)]


def random_picture(folder, name, rng):
    kind = rng.choice(["plain", "plain", "small", "thin", "large"])
    if kind == "small":
        height, width = rng.randrange(1, 12), rng.randrange(1, 12)
    elif kind == "thin":
        height, width = rng.randrange(1, 6), rng.randrange(1, 900)
        if rng.random() < 0.5:
            height, width = width, height
    else:
        high = 1500 if kind == "large" else 500
        height, width = rng.randrange(1, high), rng.randrange(1, high)
    image = Image.fromarray(picture(rng, height, width, rng.choice([3, 3, 4])))
    suffix = rng.choice(["png", "webp", "jpg"])
    path = folder / f"{name}.{suffix}"
    if suffix == "jpg":
        image.convert("RGB").save(path, quality=rng.choice([60, 90]), progressive=rng.random() < 0.5)
    elif suffix == "webp":
        image.save(path, lossless=True, method=0)
    else:
        image.save(path, compress_level=1)
    return Case(f"{path.name} {width} x {height}", path, suffix != "jpg")


def photos(folder):
    """scikit-learn's two photographs: the files it ships, and their pixels without loss."""
    images = load_sample_images()
    for name, pixels in zip(images.filenames, images.images):
        path = folder / pathlib.Path(name).name
        path.write_bytes(pathlib.Path(name).read_bytes())
        yield path
        for suffix in (".png", ".webp"):
            Image.fromarray(pixels).save(path.with_suffix(suffix), lossless=True)
            yield path.with_suffix(suffix)


def speed_sets(folder, rng):
    """Photographs cut and scaled to common sizes."""
    images = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    sets = {"jpg": [], "png": [], "webp": []}
    for number in range(12):
        width, height = rng.choice([(640, 480), (1024, 768), (1280, 960)])
        image = images[number % 2].resize((width, height), Image.BICUBIC)
        for suffix, options in (("jpg", {"quality": 90}), ("png", {}), ("webp", {"quality": 85})):
            path = folder / f"speed{number}.{suffix}"
            image.save(path, **options)
            sets[suffix].append(path)
    return sets
