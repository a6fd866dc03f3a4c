#include "dataio/import/vqa_csv.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "base/error.h"
#include "tests/support/errors.h"

namespace hanok {
namespace {

class VqaCsv : public ::testing::Test {
 protected:
  std::string file_of(const std::string& bytes) {
    const std::string path = (folder_ / "data.csv").string();
    std::ofstream(path, std::ios::binary) << bytes;
    return path;
  }
  std::vector<Record> records_of(const std::string& bytes, const std::string& encoding = "utf8") {
    VqaCsvSource source("train", {.path = file_of(bytes), .encoding = encoding});
    std::vector<Record> records;
    for (Record record; source.next(record);) records.push_back(record);
    return records;
  }
  std::string failure_of(const std::string& bytes, ErrorKind kind = ErrorKind::kData) {
    return message_of(kind, [&] { records_of(bytes); });
  }
  void SetUp() override {
    const std::string test = ::testing::UnitTest::GetInstance()->current_test_info()->name();
    folder_ = std::filesystem::temp_directory_path() / ("vqa_csv_test." + test);
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::filesystem::path folder_;
};

std::string text_of(const Record& record) {
  return record.messages[0].content[1].text;
}

constexpr const char* kHeader = "id,path,question,a,b,c,d,answer\n";

TEST_F(VqaCsv, ReadsARow) {
  const auto records = records_of(std::string(kHeader) + "7,img/1.png,What is it?,cat,dog,cow,hen,C\n");
  ASSERT_EQ(records.size(), 1u);
  const Record& record = records[0];
  EXPECT_FALSE(record.is_wrong()) << record.detail;
  EXPECT_EQ(record.number, 2);
  EXPECT_EQ(record.id, "7");
  EXPECT_EQ(record.answer, 2);
  EXPECT_EQ(record.choices, (std::vector<std::string>{"cat", "dog", "cow", "hen"}));
  ASSERT_EQ(record.messages.size(), 2u);
  EXPECT_EQ(record.messages[0].content[0].kind, ContentPart::Kind::kImage);
  EXPECT_EQ(record.messages[0].content[0].text, "img/1.png");
  EXPECT_EQ(text_of(record),
            "What is it?\na. cat\nb. dog\nc. cow\nd. hen\nAnswer with the letter of the right choice.");
  EXPECT_EQ(record.messages[1].role, "assistant");
  EXPECT_EQ(record.messages[1].content[0].text, "c");
}

TEST_F(VqaCsv, UnderstandsQuotesNewlinesAndCarriageReturns) {
  const auto records = records_of(
      "\xef\xbb\xbf"
      "id,path,question,a,b,c,d,answer\r\n"
      "1,a.png,\"two\r\nlines, and \"\"quotes\"\"\",\"x, y\",\"\"\"\",c,d,a\r\n"
      "\r\n"
      "2,b.png,5\" screen?,yes,no,,,b");
  ASSERT_EQ(records.size(), 2u);
  EXPECT_EQ(records[0].question, "two\r\nlines, and \"quotes\"");
  EXPECT_EQ(records[0].choices, (std::vector<std::string>{"x, y", "\"", "c", "d"}));
  EXPECT_EQ(records[1].number, 4);
  EXPECT_EQ(records[1].question, "5\" screen?");
  EXPECT_EQ(records[1].answer, 1);
  EXPECT_EQ(records[1].choices.size(), 2u);
  EXPECT_EQ(text_of(records[1]), "5\" screen?\na. yes\nb. no\nAnswer with the letter of the right choice.");
}

TEST_F(VqaCsv, FindsColumnsByNameInAnyOrderAndIgnoresOthers) {
  const auto records = records_of("answer, Question ,d,c,b,a,note,path,id\nb,q?,4,3,2,1,ignored,p.png,9\n");
  ASSERT_EQ(records.size(), 1u);
  EXPECT_EQ(records[0].id, "9");
  EXPECT_EQ(records[0].question, "q?");
  EXPECT_EQ(records[0].choices, (std::vector<std::string>{"1", "2", "3", "4"}));
  EXPECT_EQ(records[0].answer, 1);
}

TEST_F(VqaCsv, IsAPredictionSetWithoutAnswers) {
  for (const char* bytes :
       {"id,path,question,a,b,c,d\n1,p,q,1,2,3,4\n", "id,path,question,a,b,c,d,answer\n1,p,q,1,2,3,4,\n"}) {
    const auto records = records_of(bytes);
    ASSERT_EQ(records.size(), 1u);
    EXPECT_FALSE(records[0].is_wrong());
    EXPECT_EQ(records[0].answer, -1);
    EXPECT_EQ(records[0].messages.size(), 1u);
  }
}

TEST_F(VqaCsv, NamesMissingColumnsAndThoseFound) {
  const std::string message = failure_of("id;path;question;a;b;c;d\n");
  EXPECT_NE(message.find("got [id;path;question;a;b;c;d]"), std::string::npos) << message;
  EXPECT_NE(message.find("separated by commas"), std::string::npos) << message;
  EXPECT_NE(failure_of("id,path,question,a,b,d\n").find("add [c]"), std::string::npos);
  EXPECT_NE(failure_of("id,path,question,a,a,b,c,d\n").find("column a: got it more than once"), std::string::npos);
  EXPECT_NE(failure_of("").find("empty file"), std::string::npos);
  EXPECT_NE(failure_of("\xff\xfei\0d\0").find("UTF-16"), std::string::npos);
}

TEST_F(VqaCsv, RejectsWrongRowsOneByOne) {
  const auto records = records_of(std::string(kHeader) +
                                  "1,p,q,1,2,3,4,e\n"
                                  "2,p,q,1,2,,,c\n"
                                  "3,p,q,1,2,3\n"
                                  "4,p,q,1,,3,4,a\n"
                                  "5,p,q,1,,,,a\n"
                                  "6,,q,1,2,3,4,a\n"
                                  "7,p,\"q\" x,1,2,3,4,a\n"
                                  "8,p,q,1,2,3,4,ab\n"
                                  "9,p,q,1,2,3,4,a\n"
                                  "10,p,\"q,1,2,3,4,a\n");
  std::vector<std::string> reasons;
  for (const Record& record : records) reasons.push_back(record.reason);
  EXPECT_EQ(reasons,
            (std::vector<std::string>{"answer_invalid",
                                      "answer_invalid",
                                      "csv_columns",
                                      "choice_missing",
                                      "choice_missing",
                                      "path_empty",
                                      "csv_quotes",
                                      "answer_invalid",
                                      "",
                                      "csv_quotes"}));
  EXPECT_NE(records[0].detail.find("row 2, column answer: got \"e\", expected a letter from a to d"), std::string::npos)
      << records[0].detail;
  EXPECT_NE(records[2].detail.find("row 4 (line 4): got 6 fields, expected 8"), std::string::npos) << records[2].detail;
}

// Found by fuzzing: a message that is cut within a character is no text, and a list of skipped samples no JSON.
TEST_F(VqaCsv, MessagesAreNotCutWithinACharacter) {
  std::string answer = "x";
  for (int i = 0; i < 20; ++i) answer += "\xEA\xB0\x80";
  const auto records = records_of(kHeader + ("1,p,q,1,2,,," + answer + "\n"));
  ASSERT_EQ(records.size(), 1u);
  EXPECT_NE(records[0].detail.find("\xEA\xB0\x80\", expected"), std::string::npos) << records[0].detail;
}

TEST_F(VqaCsv, ReadsKoreanInCp949) {
  // U+C0AC U+ACFC (apple), and U+BDC1, which only the extension of EUC-KR has.
  const std::string bytes = std::string(kHeader) + "1,p,\xbb\xe7\xb0\xfa?,\x94\xee,2,3,4,a\n";
  const auto records = records_of(bytes, "cp949");
  ASSERT_EQ(records.size(), 1u);
  EXPECT_EQ(records[0].question, "\xec\x82\xac\xea\xb3\xbc?");
  EXPECT_EQ(records[0].choices[0], "\xeb\xb7\x81");
}

TEST_F(VqaCsv, SaysWhereTextIsOfAnotherEncoding) {
  const auto records = records_of(std::string(kHeader) + "1,p,\xbb\xe7\xb0\xfa?,1,2,3,4,a\n2,p,q,1,2,3,4,a\n");
  ASSERT_EQ(records.size(), 2u);
  EXPECT_EQ(records[0].reason, "encoding");
  for (const char* part : {"row 2", "column question", "data.sets.train.encoding: cp949"}) {
    EXPECT_NE(records[0].detail.find(part), std::string::npos) << records[0].detail;
  }
  EXPECT_FALSE(records[1].is_wrong());
  EXPECT_EQ(records_of(std::string(kHeader) + "1,p,\xff\xff?,1,2,3,4,a\n", "cp949")[0].reason, "encoding");
  for (const char* encoding : {"utf8", "cp949"}) {
    const auto zero = records_of(std::string(kHeader) + "1,p,ab" + '\0' + "c,1,2,3,4,a\n", encoding);
    ASSERT_EQ(zero.size(), 1u);
    EXPECT_EQ(
        zero[0].detail,
        "row 2, column question: got bytes that are no text: byte 3 is a zero; remove it, or write the file again "
        "from its source");
  }
}

TEST_F(VqaCsv, TellsUtf8FromOtherBytes) {
  for (const char* good : {"", "a", "\xc3\xa9", "\xec\x82\xac", "\xf0\x9f\x98\x80", "\xf4\x8f\xbf\xbf"}) {
    EXPECT_TRUE(is_utf8(good)) << good;
  }
  for (const char* bad : {"\x80",
                          "\xc0\xaf",
                          "\xc3",
                          "\xe0\x9f\xbf",
                          "\xed\xa0\x80",
                          "\xf4\x90\x80\x80",
                          "\xf5\x80\x80\x80",
                          "\xec\x82",
                          "\xf0\x8f\xbf\xbf"}) {
    EXPECT_FALSE(is_utf8(bad));
  }
}

TEST_F(VqaCsv, StopsAtAFieldThatNeverEnds) {
  const std::string message = failure_of(std::string(kHeader) + "1,p,\"" + std::string(17 << 20, 'x'));
  EXPECT_NE(message.find("row 2 (line 2), column 3"), std::string::npos) << message;
}

TEST_F(VqaCsv, StopsAtARowWithoutEnd) {
  const std::string header = "id,path,question,a,b,c,d\n";
  EXPECT_NE(failure_of(header + std::string(5000, ',')).find("more than 4096 fields"), std::string::npos);
  std::string wide = header;
  for (int i = 0; i < 20; ++i) wide.append(1 << 20, 'x').append(1, ',');
  EXPECT_NE(failure_of(wide).find("row 2 (line 2), column 17"), std::string::npos)
      << "fields of one row count together";
}

TEST_F(VqaCsv, FillsACustomPrompt) {
  const Message message =
      vqa_question("p", "say {a}", {"one", "two"}, "Q: {question} {x}\nA) {a}\nC) {c}\n(B) {b} {d}\n");
  EXPECT_EQ(message.content[1].text, "Q: say {a} {x}\nA) one\n(B) two \n");
  EXPECT_ERROR(error_of([] { vqa_prompt("train", {.prompt = "{a}"}); }),
               ErrorKind::kConfig,
               "data.sets.train.prompt: got no {question}");
}

TEST_F(VqaCsv, HashesTheWholeFile) {
  const auto hash_of = [&](const std::string& bytes) {
    VqaCsvSource source("train", {.path = file_of(bytes)});
    for (Record record; source.next(record);) {
    }
    return source.bytes_hash();
  };
  const std::string bytes = std::string(kHeader) + "1,p,q,1,2,3,4,a\n";
  EXPECT_EQ(hash_of(bytes), hash_of(bytes));
  EXPECT_NE(hash_of(bytes), hash_of(bytes + "\n"));
}

}  // namespace
}  // namespace hanok
