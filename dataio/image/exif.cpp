// Where cameras say how a picture is to be turned. A damaged block says nothing; it never makes a picture unreadable.
#include "dataio/image/codec.h"

namespace hanok {
namespace {

/// A TIFF structure of either byte order; every read is checked by has().
struct Tiff {
  Bytes bytes;
  bool is_big = false;

  bool has(uint64_t offset, uint64_t size) const { return offset <= bytes.size() && size <= bytes.size() - offset; }
  uint32_t u16(uint64_t offset) const {
    const uint8_t* p = bytes.data() + offset;
    return is_big ? uint32_t{p[0]} << 8 | p[1] : uint32_t{p[1]} << 8 | p[0];
  }
  uint32_t u32(uint64_t offset) const {
    const uint8_t* p = bytes.data() + offset;
    return is_big ? read_u32_big(p) : read_u32_little(p);
  }
};

constexpr uint32_t kOrientationTag = 0x0112;
constexpr uint64_t kEntryBytes = 12;

}  // namespace

std::optional<int> exif_orientation(Bytes exif) {
  constexpr std::string_view kPrefix("Exif\0\0", 6);
  while (starts_with(exif, kPrefix)) exif = exif.subspan(kPrefix.size());
  Tiff tiff{exif, starts_with(exif, "MM")};
  if (!tiff.has(0, 8) || !(tiff.is_big || starts_with(exif, "II")) || tiff.u16(2) != 42) return {};
  const uint64_t directory = tiff.u32(4);
  if (!tiff.has(directory, 2)) return {};
  const uint64_t num_entries = tiff.u16(directory);
  std::optional<int> orientation;
  for (uint64_t i = 0; i < num_entries; ++i) {
    const uint64_t entry = directory + 2 + i * kEntryBytes;
    if (!tiff.has(entry, kEntryBytes)) break;
    if (tiff.u16(entry) != kOrientationTag || tiff.u32(entry + 4) != 1) continue;
    const uint32_t type = tiff.u16(entry + 2);
    uint32_t value = 0;
    if (type == 3 || type == 8) {  // SHORT, SSHORT
      value = tiff.u16(entry + 8);
    } else if (type == 4 || type == 9) {  // LONG, SLONG
      value = tiff.u32(entry + 8);
    } else {
      continue;
    }
    orientation = value <= 8 ? static_cast<int>(value) : 0;
  }
  return orientation;
}

std::optional<int> xmp_orientation(std::string_view xmp) {
  constexpr std::string_view kName = "tiff:Orientation";
  for (size_t at = xmp.find(kName); at != std::string_view::npos; at = xmp.find(kName, at + 1)) {
    std::string_view rest = xmp.substr(at + kName.size());
    if (rest.substr(0, 2) == "=\"") {
      rest.remove_prefix(2);
    } else if (rest.substr(0, 1) == ">") {
      rest.remove_prefix(1);
    } else {
      continue;
    }
    if (!rest.empty() && rest[0] >= '0' && rest[0] <= '9') return rest[0] - '0';
  }
  return {};
}

}  // namespace hanok
