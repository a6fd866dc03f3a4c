#include "trainer/host_buffer.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <thread>

#include "tests/dataio/temp_folder.h"
#include "tests/support/errors.h"
#include "trainer/host_memory.h"

namespace hanok {
namespace {

constexpr int64_t kMiB = int64_t{1} << 20;
constexpr int64_t kPiece = 2 * kMiB;
const at::Device kGpu(at::kCUDA, 0);

void await(HostBuffer& buffer) {
  if (const auto failure = buffer.making().take()) throw *failure;
}

uintptr_t address(const Tensor& x) {
  return reinterpret_cast<uintptr_t>(x.const_data_ptr());
}

/// Pages of the buffer that are present.
int64_t present(HostBuffer& buffer) {
  buffer.clear();
  const Tensor all = buffer.carve(at::kByte, buffer.bytes());
  std::vector<unsigned char> pages(static_cast<size_t>(buffer.bytes() / ::sysconf(_SC_PAGESIZE)));
  EXPECT_EQ(::mincore(all.mutable_data_ptr(), static_cast<size_t>(buffer.bytes()), pages.data()), 0);
  return std::count_if(pages.begin(), pages.end(), [](unsigned char page) { return page & 1; });
}

struct Room {
  at::ScalarType dtype;
  int64_t size;
};
std::vector<Room> rooms() {
  std::vector<Room> out;
  for (const auto dtype : {at::kByte, at::kFloat, at::kBFloat16, at::kLong, at::kDouble})
    for (const int64_t size : {0, 1, 3, 511, 512, 513, 100003}) out.push_back({dtype, size});
  return out;
}
int64_t bytes_of(const Room& room) {
  return room.size * static_cast<int64_t>(c10::elementSize(room.dtype));
}

TEST(HostBuffer, CarvesAlignedRoomForAnySizeAndDtypeAgainAndAgain) {
  int64_t bytes = 0;
  for (const Room& room : rooms()) bytes += HostBuffer::room_bytes(bytes_of(room));
  HostBuffer buffer(bytes, at::kCPU, "a test");
  await(buffer);
  EXPECT_GE(buffer.bytes(), bytes);
  std::vector<Tensor> first;
  for (int round = 0; round < 2; ++round) {
    std::vector<Tensor> carved;
    for (const Room& room : rooms()) {
      carved.push_back(buffer.carve(room.dtype, room.size));
      EXPECT_EQ(carved.back().scalar_type(), room.dtype);
      EXPECT_EQ(carved.back().sizes(), at::IntArrayRef({room.size}));
      EXPECT_EQ(address(carved.back()) % HostBuffer::kAlignment, 0u);
    }
    for (size_t i = 0; i < carved.size(); ++i) carved[i].fill_(static_cast<int64_t>(i + 1));
    for (size_t i = 0; i < carved.size(); ++i)
      EXPECT_TRUE(carved[i].eq(static_cast<int64_t>(i + 1)).all().item<bool>()) << i << " shares room with another";
    if (round == 0) first = carved;
    for (size_t i = 0; i < carved.size(); ++i) EXPECT_EQ(address(carved[i]), address(first[i])) << "memory is kept";
    buffer.clear();
  }
}

TEST(HostBuffer, ACopyIsCutWherePiecesMeet) {
  constexpr int64_t kBytes = 3 * kPiece + 12345 * 8;
  HostBuffer buffer(kBytes + 512, at::kCPU, "a test", {.piece_bytes = kPiece});
  await(buffer);
  for (const auto dtype : {at::kByte, at::kBFloat16, at::kDouble}) {
    buffer.clear();
    buffer.carve(at::kByte, 1);
    const Tensor from = at::arange(kBytes / static_cast<int64_t>(c10::elementSize(dtype))).remainder(251).to(dtype);
    const Tensor to = buffer.carve(dtype, from.numel()).zero_();
    buffer.copy(to, from);
    EXPECT_TRUE(at::equal(to, from));
    to.zero_();
    buffer.copy(to.narrow(0, 5, 7), from.narrow(0, 100, 7));
    EXPECT_TRUE(at::equal(to.narrow(0, 5, 7), from.narrow(0, 100, 7)));
    EXPECT_EQ(to.narrow(0, 12, to.numel() - 12).count_nonzero().item<int64_t>(), 0) << "beyond what was asked for";
  }
}

TEST(HostBuffer, PagesAreThereBeforeTheyAreNeededForAGpuAlone) {
  const int64_t page = ::sysconf(_SC_PAGESIZE);
  HostBuffer on_cpu(9 * kMiB + 1, at::kCPU, "a test", {.piece_bytes = kPiece});
  await(on_cpu);
  EXPECT_EQ(present(on_cpu), 0);

  testing::internal::CaptureStderr();
  HostBuffer for_gpu(9 * kMiB + 1, kGpu, "a test", {.piece_bytes = kPiece});
  await(for_gpu);
  const std::string said = testing::internal::GetCapturedStderr();
  EXPECT_EQ(for_gpu.bytes(), 9 * kMiB + page);
  EXPECT_EQ(present(for_gpu), for_gpu.bytes() / page);
  // Pinned, or else that is said once, and the memory is as good as any.
  EXPECT_EQ(for_gpu.pinned_bytes(), at::hasCUDA() ? for_gpu.bytes() : 0) << said;
  const std::string warning = "expected 0.01 GiB; a test; it is used as it is";
  EXPECT_EQ(said.find(warning) == std::string::npos, at::hasCUDA()) << said;
  EXPECT_EQ(said.find(warning), said.rfind(warning)) << said;
}

TEST(HostBuffer, AHostWithoutRoomIsAnErrorOfTheThread) {
  const auto made = [](at::Device device, std::vector<double> available, size_t* asked) {
    HostBuffer buffer(10 * kPiece, device, "a test", {.piece_bytes = kPiece, .available_bytes = [available, asked] {
                                                        return available.at(std::min((*asked)++, available.size() - 1));
                                                      }});
    await(buffer);
  };
  // The buffer and eight pieces for other ranks.
  for (const at::Device device : {at::Device(at::kCPU), kGpu}) {
    size_t asked = 0;
    EXPECT_NO_THROW(made(device, {18 * kPiece}, &asked));
    asked = 0;
    EXPECT_ERROR(error_of([&] { made(device, {18 * kPiece - 1}, &asked); }),
                 ErrorKind::kDevice,
                 "host memory: got 0.04 GiB available, expected 0.04 GiB for 0.02 of the 0.02 GiB that a test takes");
    EXPECT_EQ(asked, 1u);
  }
  // Other processes take it meanwhile.
  size_t asked = 0;
  EXPECT_ERROR(error_of([&] {
                 made(kGpu, {100 * kPiece, 17 * kPiece, 15 * kPiece}, &asked);
               }),
               ErrorKind::kDevice,
               "got 0.03 GiB available");
  EXPECT_EQ(asked, 3u);
  EXPECT_ERROR(error_of([] {
                 HostBuffer buffer(int64_t{1} << 60, at::kCPU, "a test");
                 await(buffer);
               }),
               ErrorKind::kDevice,
               "host memory: got 'Cannot allocate memory', expected");
}

TEST(HostBuffer, EndsSoonWhereNobodyWantsItAnyMore) {
  std::atomic<int> asked = 0;
  {
    const HostBuffer buffer(500 * kPiece, kGpu, "a test", {.piece_bytes = kPiece, .available_bytes = [&asked] {
                                                             ++asked;
                                                             std::this_thread::sleep_for(std::chrono::milliseconds(5));
                                                             return 1e12;
                                                           }});
    while (asked == 0) std::this_thread::yield();
  }
  EXPECT_LT(asked, 250);
}

void write(const std::string& file, const std::string& text) {
  std::filesystem::create_directories(std::filesystem::path(file).parent_path());
  std::ofstream(file) << text;
}

TEST(HostMemory, IsTheLeastOfTheMachineAndItsControlGroups) {
  const TempFolder root;
  const auto expect = [&](double total, double available) {
    const HostMemory found = host_memory(root.path());
    EXPECT_EQ(found.total_bytes, total);
    EXPECT_EQ(found.available_bytes, available);
  };
  write(root / "proc/meminfo", "MemTotal:       1000 kB\nMemFree:  100 kB\nMemAvailable:    800 kB\n");
  expect(1000 * 1024, 800 * 1024);
  write(root / "proc/self/cgroup", "4:memory:/job/step\n0::/slice/job\n");
  write(root / "sys/fs/cgroup/memory.max", "max\n");
  expect(1000 * 1024, 800 * 1024);
  // A group above this process's own; caches of files can be dropped.
  write(root / "sys/fs/cgroup/slice/memory.max", "600000\n");
  write(root / "sys/fs/cgroup/slice/memory.current", "500000\n");
  write(root / "sys/fs/cgroup/slice/memory.stat", "anon 1\nactive_file 30000\ninactive_file 4000\nfile 99999\n");
  expect(600000, 134000);
  // Version 1.
  write(root / "sys/fs/cgroup/memory/job/step/memory.limit_in_bytes", "500000\n");
  write(root / "sys/fs/cgroup/memory/job/step/memory.usage_in_bytes", "480000\n");
  write(root / "sys/fs/cgroup/memory/job/step/memory.stat", "inactive_file 7\ntotal_inactive_file 1000\n");
  expect(500000, 21000);
  write(root / "sys/fs/cgroup/memory/job/step/memory.usage_in_bytes", "600000\n");
  expect(500000, 0);
}

TEST(HostMemory, FilesInMemoryMustFitThere) {
  const std::string shared = "/dev/shm";  // a tmpfs wherever Linux is set up as usual
  require_memory_for_files(shared, 1000, 1000, true);
  const auto refused = [&](bool is_copied) {
    return error_of([&] { require_memory_for_files(shared, 1001, 1000, is_copied); });
  };
  EXPECT_ERROR(refused(true), ErrorKind::kIo, "save.background=false");
  EXPECT_ERROR(refused(false), ErrorKind::kIo, "a folder on a disk");
  EXPECT_EQ(std::string(refused(false).what()).find("save.background"), std::string::npos) << "it is set already";
  require_memory_for_files("/proc", 1001, 1000, false);  // no memory holds its files
}

TEST(HostMemory, OfThisHostIsThere) {
  const HostMemory found = host_memory();
  EXPECT_GT(found.available_bytes, kMiB);
  EXPECT_GE(found.total_bytes, found.available_bytes);
}

}  // namespace
}  // namespace hanok
