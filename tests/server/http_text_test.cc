#include "server/http_text.h"

#include <gtest/gtest.h>

#include "server/http_auth.h"
#include "server/http_parser.h"
#include "server/http_router.h"
#include "server/multipart.h"

namespace millrace {
namespace {

TEST(HttpText, TargetPaths) {
  EXPECT_EQ(target_path("/a/b?c=d"), "/a/b");
  EXPECT_EQ(target_path("/a#b"), "/a");
  EXPECT_EQ(target_path("/"), "/");
  EXPECT_EQ(target_path("*"), "*");
  EXPECT_EQ(target_path("http://host:80/a?b"), "/a");
  EXPECT_EQ(target_path("HTTPS://host"), "/");
  EXPECT_EQ(target_path("http://host?x=/y"), "/");
  EXPECT_EQ(target_path("//a"), "//a");
  for (const char* bad : {"", "a", "http:///a", "ftp://a/b", "?a"}) EXPECT_FALSE(target_path(bad)) << bad;
}

TEST(HttpText, PercentDecoding) {
  EXPECT_EQ(percent_decode("a%2Fb%20c%c3%a9+"), "a/b c\xc3\xa9+");
  for (const char* bad : {"%", "%2", "%zz", "a%00b", "%2"}) EXPECT_FALSE(percent_decode(bad)) << bad;
}

TEST(HttpText, RequestIds) {
  EXPECT_TRUE(valid_request_id("Abc-1_2.3:4/5+6=7@8~"));
  EXPECT_TRUE(valid_request_id(std::string(128, 'a')));
  for (const std::string& bad : {std::string(), std::string(129, 'a'), std::string("a b"), std::string("a\"b"),
                                 std::string("a\nb"), std::string("\xc3\xa9")}) {
    EXPECT_FALSE(valid_request_id(bad)) << bad;
  }
  EXPECT_TRUE(valid_request_id(new_request_id()));
  EXPECT_NE(new_request_id(), new_request_id());
}

TEST(HttpText, HeadsAndChunks) {
  const std::vector<std::pair<std::string, std::string>> headers{{"A", "b"}, {"Evil", "c\r\nX: y"}};
  const std::string head = response_head({.status = 429, .content_type = "a/b", .length = 5, .headers = headers});
  EXPECT_TRUE(head.starts_with("HTTP/1.1 429 Too Many Requests\r\n"));
  EXPECT_NE(head.find("\r\nContent-Length: 5\r\n"), std::string::npos);
  EXPECT_NE(head.find("\r\nA: b\r\n"), std::string::npos);
  EXPECT_EQ(head.find("X: y"), std::string::npos);
  EXPECT_TRUE(head.ends_with("\r\n\r\n"));
  EXPECT_EQ(response_head({.status = 204}).find("Content-Length"), std::string::npos);
  std::string out;
  append_chunk(out, "");
  append_chunk(out, std::string(26, 'x'));
  EXPECT_EQ(out, "1a\r\n" + std::string(26, 'x') + "\r\n");
}

TEST(ApiKeys, Files) {
  const auto keys = ApiKeys::parse("#c\n a \r\n\nb", "f");
  ASSERT_TRUE(keys.ok());
  EXPECT_EQ(keys->size(), 2U);
  EXPECT_TRUE(keys->tenant("Bearer a"));
  EXPECT_FALSE(keys->tenant("Bearer c"));
  EXPECT_FALSE(keys->tenant(""));
  EXPECT_EQ(ApiKeys::parse("# only\n\n", "f").error().message, "f: no key in it; expected one a line");
  const auto bad = ApiKeys::parse("good\nsecret words\n", "f");
  ASSERT_FALSE(bad.ok());
  EXPECT_EQ(bad.error().message.find("secret"), std::string::npos);
  EXPECT_NE(bad.error().message.find("line 2"), std::string::npos);
}

TEST(HttpRouter, FindsPathsAndMethods) {
  std::vector<HttpRoute> routes(3);
  routes[0].path = "/v1/models";
  routes[1].path = "/v1/models/{id}";
  routes[2].path = "/v1/embeddings";
  routes[2].method = HttpRoute::Method::post;
  EXPECT_EQ(find_route(routes, "GET", "/v1/models").route, &routes[0]);
  const RouteMatch model = find_route(routes, "GET", "/v1/models/org%2Fname/x");
  EXPECT_EQ(model.route, &routes[1]);
  EXPECT_EQ(model.parameter, "org/name/x");
  for (const char* path : {"/v1/models/", "/v1/models/%zz", "/V1/models", "/v1/models//", "/models", "/v1"}) {
    const RouteMatch match = find_route(routes, "GET", path);
    EXPECT_EQ(match.route == nullptr, std::string(path) != "/v1/models//") << path;
  }
  EXPECT_FALSE(find_route(routes, "POST", "/v1/models").method_fits);
  EXPECT_FALSE(find_route(routes, "HEAD", "/v1/embeddings").method_fits);
}

TEST(HttpRouter, FindsAPlaceInTheMiddleAndDeletes) {
  using Method = HttpRoute::Method;
  std::vector<HttpRoute> routes(4);
  routes[0] = {Method::get, "/v1/files/{id}/content"};
  routes[1] = {Method::get, "/v1/files/{id}"};
  routes[2] = {Method::erase, "/v1/files/{id}"};
  routes[3] = {Method::post, "/v1/files"};
  const RouteMatch content = find_route(routes, "GET", "/v1/files/a%20b/content");
  EXPECT_EQ(content.route, &routes[0]);
  EXPECT_EQ(content.parameter, "a b");
  EXPECT_EQ(find_route(routes, "GET", "/v1/files/a/b/content").route, &routes[1]) << "there is a slash in it";
  EXPECT_EQ(find_route(routes, "GET", "/v1/files//content").route, &routes[1]);
  EXPECT_EQ(find_route(routes, "GET", "/v1/files/x").route, &routes[1]);
  EXPECT_EQ(find_route(routes, "DELETE", "/v1/files/x").route, &routes[2]);
  EXPECT_FALSE(find_route(routes, "PUT", "/v1/files/x").method_fits);
  EXPECT_EQ(find_route(routes, "OPTIONS", "/v1/files/x").allow(), "GET, HEAD, DELETE, OPTIONS");
  EXPECT_EQ(find_route(routes, "OPTIONS", "/v1/files").allow(), "POST, OPTIONS");
  EXPECT_EQ(find_route(routes, "OPTIONS", "/v1").allow(), "");
  const HttpReply reply = no_route_reply(find_route(routes, "PUT", "/v1/files/x"), "PUT", "/v1/files/x");
  EXPECT_EQ(reply.status, 405);
  EXPECT_NE(reply.body.find("GET, HEAD, DELETE"), std::string::npos);
}

TEST(HttpText, ReadsQueries) {
  EXPECT_EQ(target_query("/a?b=c&d#e"), "b=c&d");
  EXPECT_EQ(target_query("/a"), "");
  EXPECT_EQ(target_query("/a#b?c"), "");
  EXPECT_EQ(query_value("limit=5&after=a%20b&after=c", "limit"), "5");
  EXPECT_EQ(query_value("limit=5&after=a%20b&after=c", "after"), "a b");
  EXPECT_EQ(query_value("limit&x=", "limit"), "");
  EXPECT_EQ(query_value("limit&x=", "x"), "");
  EXPECT_FALSE(query_value("limit=5", "imit"));
  EXPECT_FALSE(query_value("", "limit"));
  EXPECT_FALSE(query_value("a=%zz", "a"));
}

const char* const kForm = "multipart/form-data; boundary=\"a b\"";

TEST(Multipart, ReadsForms) {
  const std::string body =
      "to be ignored\r\n--a b \r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n"
      "--a b\r\nContent-Type: text/plain\r\ncontent-disposition: form-data; filename=\"C:\\\\d/q\\\"x.jsonl\"; "
      "name=file\r\n\r\n{}\r\n--a\r\n\r\n--a b\r\nContent-Disposition: form-data; name=empty\r\n\r\n\r\n--a "
      "b--\r\nrest";
  const auto parts = parse_form(kForm, body);
  ASSERT_TRUE(parts.ok()) << parts.error().message;
  ASSERT_EQ(parts->size(), 3u);
  EXPECT_EQ((*parts)[0].name, "purpose");
  EXPECT_EQ((*parts)[0].content, "batch");
  EXPECT_FALSE((*parts)[0].filename);
  EXPECT_EQ((*parts)[1].name, "file");
  EXPECT_EQ((*parts)[1].filename, "q\"x.jsonl");
  EXPECT_EQ((*parts)[1].content, "{}\r\n--a\r\n");
  EXPECT_EQ((*parts)[2].content, "");
  // Whatever is cut off or missing is refused, and read no further than it goes.
  for (std::size_t cut = 0; cut + 6 < body.size(); ++cut) {
    EXPECT_FALSE(parse_form(kForm, std::string(body, 0, cut)).ok()) << cut;
  }
}

TEST(Multipart, RefusesWhatIsNoForm) {
  const std::string part = "--b\r\nContent-Disposition: form-data; name=x\r\n\r\n1\r\n";
  const std::string_view type = "multipart/form-data; boundary=b";
  EXPECT_TRUE(parse_form(type, part + "--b--").ok());
  EXPECT_TRUE(parse_form("Multipart/Form-Data; charset=x; Boundary=b", part + "--b--").ok());
  for (const char* bad : {"", "text/plain", "multipart/form-data", "multipart/form-data; boundary=",
                          "multipart/form-data; boundary=\"b", "multipart/mixed; boundary=b"}) {
    EXPECT_FALSE(parse_form(bad, part + "--b--").ok()) << bad;
  }
  EXPECT_FALSE(form_boundary("multipart/form-data; boundary=" + std::string(71, 'b')).ok());
  for (const std::string& bad : {std::string(), std::string("--c--"), part, part + part + "--b--",
                                 std::string("--b\r\n\r\n1\r\n--b--"), std::string("--b\r\nX\r\n\r\n1\r\n--b--"),
                                 std::string("--b\r\nContent-Disposition: attachment; name=x\r\n\r\n1\r\n--b--"),
                                 "--bX" + part, "--b\r\nA: " + std::string(9000, 'a') + "\r\n\r\n1\r\n--b--"}) {
    EXPECT_FALSE(parse_form(type, bad).ok()) << bad.substr(0, 100);
  }
  std::string many;
  for (int i = 0; i < 33; ++i) {
    many += "--b\r\nContent-Disposition: form-data; name=x" + std::to_string(i) + "\r\n\r\n1\r\n";
  }
  EXPECT_FALSE(parse_form(type, many + "--b--").ok());
}

TEST(HttpParser, TakesARequestInPiecesOfAnySize) {
  const std::string request =
      "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nAuthorization: Bearer k\r\n\r\n"
      "3\r\nabc\r\n4;e=1\r\ndefg\r\n0\r\nAuthorization: trailer\r\n\r\nNEXT";
  for (std::size_t piece = 1; piece < request.size(); ++piece) {
    HttpParser parser(1024, 1024);
    std::optional<HttpFault> fault;
    std::string input;
    std::size_t given = 0;
    int heads = 0;
    HttpParser::Progress progress = HttpParser::Progress::need_more;
    while (progress != HttpParser::Progress::complete && !fault && given <= request.size()) {
      std::size_t consumed = 0;
      progress = parser.put(input, consumed, fault);
      input.erase(0, consumed);
      if (progress == HttpParser::Progress::header_done) ++heads;
      if (progress != HttpParser::Progress::need_more) continue;
      if (given == request.size()) break;
      input += request.substr(given, piece);
      given = std::min(given + piece, request.size());
    }
    ASSERT_FALSE(fault) << piece << ": " << fault->message;
    ASSERT_EQ(progress, HttpParser::Progress::complete) << piece;
    EXPECT_EQ(heads, 1);
    EXPECT_EQ(parser.body(), "abcdefg");
    EXPECT_EQ(parser.head().authorization, "Bearer k");  // a trailer changes nothing that was decided on
    EXPECT_TRUE(std::string("NEXT").starts_with(input));
  }
}

/// What became of `request`, given `piece` bytes at a time, when a head or trailers may have `limit` bytes.
int status_in_pieces(const std::string& request, std::size_t piece, std::size_t limit) {
  HttpParser parser(limit, 1024);
  std::optional<HttpFault> fault;
  std::string input;
  for (std::size_t given = 0; given < request.size();) {
    input += request.substr(given, piece);
    given += piece;
    auto progress = HttpParser::Progress::header_done;
    while (progress == HttpParser::Progress::header_done && !fault) {
      std::size_t consumed = 0;
      progress = parser.put(input, consumed, fault);
      input.erase(0, consumed);
    }
    if (fault) return fault->status;
    if (progress == HttpParser::Progress::complete) return 200;
  }
  return 0;
}

TEST(HttpParser, LimitsHeadsAndTrailersToTheByte) {
  const std::string head = "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
  const std::string trailers = "0\r\nX-Long: " + std::string(100, 'a') + "\r\n\r\n";
  for (std::size_t piece = 1; piece < head.size() + trailers.size(); ++piece) {
    EXPECT_EQ(status_in_pieces(head + "0\r\n\r\n", piece, head.size()), 200) << piece;
    EXPECT_EQ(status_in_pieces(head + "0\r\n\r\n", piece, head.size() - 1), 431) << piece;
    EXPECT_EQ(status_in_pieces(head + trailers, piece, trailers.size()), 200) << piece;
    EXPECT_EQ(status_in_pieces(head + trailers, piece, trailers.size() - 1), 400) << piece;
  }
  // A chunk is no header: it may be longer.
  const std::string body = "190\r\n" + std::string(400, 'b') + "\r\n0\r\n\r\n";
  EXPECT_EQ(status_in_pieces(head + body, 1000, head.size()), 200);
}

}  // namespace
}  // namespace millrace
