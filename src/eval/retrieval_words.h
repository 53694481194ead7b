// The words of the retrieval tasks, those of models/train/retrieval.py, with which the project's own models were
// trained.
#pragma once

#include <string_view>

namespace millrace {

/// Before a thing, where things alone are too few keys.
constexpr std::string_view kColors = "red blue green white black yellow brown silver golden grey pink";

/// Keys.
constexpr std::string_view kThings =
    "animal bag ball balloon bank bear beast bed bell bird board boat book bow box boy bread breakfast bridge "
    "brother bull butter cabin camp captain carriage cart case castle cat cave chair chest chief child church "
    "city cloud coast coat companion corner country court cow creature crew crowd cup daughter deck desert dinner "
    "doctor dog doll door dragon dream dress drink ear edge egg engine engineer evening eye face fairy father "
    "feast feather field fire fish floor flower fool forest fort friend garden gate ghost girl glass gun hall "
    "hand hat head hill hole home horse house husband island journey key king kitchen knife knight lady lake land "
    "language law leg letter line lock maid master meat mill money moon mother mountain mouth music neck nose "
    "number ocean office palace paper party path pen picture pie pig pin plan plate platform pocket poet police "
    "priest prince prison project queen raft river road rock roof room rose sail sailor school servant shadow "
    "ship shore shoulder sister sky smile son song soul spirit star station stone storm story stranger stream "
    "street sun supper sword table tail tea throat tongue town track train tree uncle valley vessel village voice "
    "wall wife wind window word world";

/// Values.
constexpr std::string_view kQualities =
    "angry big bitter bold brave bright broad broken calm clean clear clever cold cool cruel curious dark dead "
    "deep difficult dim dry dull famous fat fierce fine flat fond foolish fresh full gay gentle glad good grand "
    "great handsome happy hard heavy holy honest horrible hot huge hungry ill immense important large late light "
    "little lonely long lost loud lovely low mad merry mighty mysterious narrow new nice noble odd old pale "
    "peculiar plain pleasant poor pretty proud queer quick quiet ready rich rough round royal sad safe sharp "
    "short sick silent simple slow small smooth soft solemn solid splendid strange strong sweet swift tall tender "
    "terrible thick thin tired true useful usual vast warm weak wet wicked wide wild wise wonderful young";

}  // namespace millrace
