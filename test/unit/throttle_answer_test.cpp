#include "http/throttle_answer.hpp"

#include <cstring>
#include <string>

#include <gtest/gtest.h>

#include "http/http_request.hpp"

namespace weir
{

namespace
{

std::string Body(const ThrottleAnswer &answer, int *status)
{
    char body[2048];
    TextWriter writer(body, sizeof(body));
    *status = AnswerThrottle("gh-ost:1", answer, &writer);
    EXPECT_FALSE(writer.Full());
    return std::string(body, writer.Length());
}

TEST(ThrottleAnswer, GoOnIsOnlyTwoHundred)
{
    const struct {
        ThrottleCode code;
        int status;
    } cases[] = {{ThrottleCode::kOk, 200},     {ThrottleCode::kExempt, 200},  {ThrottleCode::kLagging, 429},
                 {ThrottleCode::kDenied, 417}, {ThrottleCode::kUnknown, 404}, {ThrottleCode::kStale, 500},
                 {ThrottleCode::kStandby, 404}};
    for (const auto &c : cases) {
        ThrottleAnswer answer = {};
        answer.code = c.code;
        int status;
        const std::string body = Body(answer, &status);
        EXPECT_EQ(status, c.status) << ThrottleCodeName(c.code);
        EXPECT_EQ(status == 200, IsAllowed(c.code));
        EXPECT_EQ(body.find("\"allowed\": true") != std::string::npos, IsAllowed(c.code)) << body;
    }
}

TEST(ThrottleAnswer, UnitsAreSecondsOrBytes)
{
    int status;
    EXPECT_EQ(Body({ThrottleCode::kLagging, false, 2500000, 2000000, 500000}, &status),
              "{\"app\": \"gh-ost:1\", \"allowed\": false, \"code\": \"lagging\", \"value\": 2.5, "
              "\"threshold\": 2, "
              "\"unit\": \"s\", \"retry_after_seconds\": 0.5}\n");
    EXPECT_EQ(
        Body({ThrottleCode::kOk, true, 1000, 2000, 0}, &status),
        "{\"app\": \"gh-ost:1\", \"allowed\": true, \"code\": \"ok\", \"value\": 1000, \"threshold\": 2000, "
        "\"unit\": \"bytes\", \"retry_after_seconds\": 0}\n");
}

TEST(ThrottleAnswer, TheTargetNamesOneApplication)
{
    HttpRequest request;
    auto parse = [&](const std::string &target) {
        return ParseHttpTarget(target.data(), target.size(), &request);
    };
    EXPECT_EQ(parse("/throttle/check?app=back%20fill"), nullptr);
    EXPECT_EQ(request.endpoint, Endpoint::kThrottleCheck);
    EXPECT_STREQ(request.app, "back fill");
    for (const char *target :
         {"/throttle/check", "/throttle/check?", "/throttle/check?app=", "/throttle/check?app=a&app=b",
          "/throttle/check?lag=1s", "/throttle/check?app=%00"})
        EXPECT_NE(parse(target), nullptr) << target;
    EXPECT_NE(parse("/throttle/check?app=" + std::string(64, 'a')), nullptr);
    EXPECT_EQ(parse("/throttle/check?app=" + std::string(63, 'a')), nullptr);
}

} // namespace

} // namespace weir
